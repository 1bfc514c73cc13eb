"""The starter manifest, and the JSON Schema by which editors complete a manifest and mark what is wrong in it.

The schema checks less than the program: only ``sparsebench plan`` checks what depends on another file or another key's value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import resources
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from sparsebench.manifest.schema import Manifest

SCHEMA_FILE = "sparsebench.schema.json"
"""The name under which the schema is written."""
MODELINE = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
"""The line by which the YAML language server finds a schema beside the manifest."""


def starter() -> str:
    """Return the manifest that ``sparsebench init`` writes: two small real models, fetched from the package index."""
    return resources.files(__package__).joinpath("template.yaml").read_text(encoding="utf-8")


class _Untitled(GenerateJsonSchema):
    """A generator of schemas without titles for keys, which would only repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


StepModels = Mapping[tuple[str, str], type[BaseModel]]
"""The model that a written step must fit, by its verb and its name."""


def json_schema(steps: StepModels, engines: Collection[str], formats: Collection[str]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a manifest, made from the models and docstrings in ``schema``.

    The caller passes the ``steps``, ``engines`` and ``formats`` that exist, with those of plugins: later packages know
    them.
    """
    schema = Manifest.model_json_schema(by_alias=True, schema_generator=_Untitled)
    for section, key, names in (("ManifestRuntime", "engines", engines), ("ManifestStorage", "formats", formats)):
        _limit_to(list(names), schema["$defs"][section]["properties"][key])
    models = schema["$defs"]["ManifestTask"]["properties"]["models"]
    for (verb, name), step_model in steps.items():
        step = step_model.model_json_schema(schema_generator=_Untitled)
        schema["$defs"] |= step.pop("$defs", {})
        properties = {verb: {"const": name}, **step["properties"], "models": models}
        schema["$defs"][f"{verb} {name}"] = {**step, "properties": properties, "required": [verb]}
    any_step = {"anyOf": [{"$ref": f"#/$defs/{verb} {name}"} for verb, name in steps]}
    recipe = {"type": "array", "items": any_step, "minItems": 1}
    schema["properties"]["variants"]["items"] = {"anyOf": [any_step, recipe]}
    return {"$schema": _Untitled.schema_dialect, **schema, "title": "sparsebench manifest"}


def _limit_to(names: list[str], key_schema: dict[str, Any]) -> None:
    """Allow these names only wherever ``key_schema`` allows any text."""
    if key_schema.get("type") == "string":
        key_schema["enum"] = names
    for branch in [*key_schema.get("anyOf", ()), *([key_schema["items"]] if "items" in key_schema else ())]:
        _limit_to(names, branch)
