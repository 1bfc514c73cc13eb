"""Explains pydantic's errors in plain words, each at its position in the file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sparsebench.manifest.nodes import KeyPath, Positions, dotted
from sparsebench.manifest.problems import MOST_PROBLEMS, Problem, closest, did_you_mean, one_of
from sparsebench.manifest.schema import Manifest

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "`true` or `false`",
    "list_type": "a list",
    "dict_type": "a mapping (`key: value`)",
    "model_type": "a mapping (`key: value`)",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
}
"""What each kind of pydantic error expected; the rest is in ``_describe``."""
_BOUNDS = ("gt", "ge", "lt", "le")


def explain(
    error: ValidationError,
    data: Any,
    positions: Positions,
    base: KeyPath = (),
    model: type[BaseModel] = Manifest,
    extra_keys: Collection[str] = (),
) -> Iterator[Problem]:
    """Yield the first errors as problems; ``data``, at ``base`` in the file, was validated as ``model``.

    ``extra_keys`` are allowed besides the model's. A missing key that is there, but misspelt, is reported once,
    as the misspelling.
    """
    details = [(detail, _path_in_file(detail, data)) for detail in error.errors(include_url=False)[:MOST_PROBLEMS]]
    unknown = [at for detail, at in details if detail["type"] == "extra_forbidden"]
    paths = [at for _, at in details if at]
    allowed = {at: {**known_keys(at[:-1], model), **dict.fromkeys(extra_keys, "")} for at in paths}
    misspelt = {(*at[:-1], closest(str(at[-1]), allowed[at])) for at in unknown}
    for detail, at in details:
        if detail["type"] != "missing" or at not in misspelt:
            description = _describe(detail, at, positions.text((*base, *at)), allowed.get(at, {}))
            yield positions.problem((*base, *at), *description, on_key=at in unknown)


def _describe(detail: ErrorDetails, at: KeyPath, written: str, allowed: Mapping[str, str]) -> tuple[str, str, str]:
    """Return what is wrong, what was expected and a hint.

    ``written`` is the value as the file has it, ``allowed`` are the keys that may stand there, with their explanations.
    """
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    key_name = f"`{dotted(at[-2:] if at and isinstance(at[-1], int) else at[-1:])}`" if at else "the manifest"
    shown = _shown(value, written)
    unquoted = f"write it without quotes: {value}"
    if kind == "manifest":
        return context["message"], context["expected"], context["hint"]
    if kind == "missing":
        return f"{key_name} is missing", allowed[str(at[-1])], ""
    if kind == "extra_forbidden":
        return f"unknown key {key_name}", one_of(sorted(allowed)), did_you_mean(str(at[-1]), allowed)
    if kind == "literal_error":
        listed = re.split(", | or ", context["expected"])  # text in quotes, numbers without
        options = [option.strip("'") for option in listed]
        hint = unquoted if isinstance(value, str) and value in listed else did_you_mean(str(value), options)
        return f"{key_name} is {shown}", one_of(options), hint
    if kind == "too_short":
        collection, part = ("mapping", "key") if isinstance(value, dict) else ("list", "item")
        return f"{key_name} is an empty {collection}", f"at least one {part}", ""
    hint = ""
    if kind == "string_type" and isinstance(value, int | float):
        hint = f'write it in quotes: "{written}"'
    elif kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?", value):
        hint = unquoted
    bounds = {
        key: f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
        for key, bound in context.items()
        if key in _BOUNDS
    }
    expected = _EXPECTED[kind].format(**bounds) if kind in _EXPECTED else detail["msg"]
    return f"{key_name} is {'the text ' if isinstance(value, str) else ''}{shown}", expected, hint


def known_keys(at: KeyPath, model: type[BaseModel] = Manifest) -> dict[str, str]:
    """Return the keys that the mapping at ``at`` of a ``model`` may have, each with its explanation."""
    root = _schema(model)
    options = [root]
    for step in at:
        if isinstance(step, int):
            schemas = [option["items"] for option in options if "items" in option]
        else:
            schemas = [option["properties"][step] for option in options if step in option.get("properties", {})]
        options = _options(schemas, root)
    properties = [option.get("properties", {}) for option in options]
    return {key: schema.get("description", "") for schemas in properties for key, schema in schemas.items()}


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _options(schemas: list[dict[str, Any]], root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the alternatives of JSON schemas, with references followed."""
    alternatives: list[dict[str, Any]] = []
    for schema in schemas:
        if "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
        branches = schema.get("anyOf", []) + schema.get("oneOf", [])
        alternatives += _options(branches, root) if branches else [schema]
    return alternatives


def _path_in_file(detail: ErrorDetails, data: Any) -> KeyPath:
    """Return an error's path in the file, without pydantic's own parts: union tags, the index of a single value."""
    at: list[str | int] = []
    for part in detail["loc"]:
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int)):
            data = data[part]  # type: ignore[index]
            at.append(part)
    if detail["type"] == "missing":
        at.append(detail["loc"][-1])
    elif key := detail.get("ctx", {}).get("at"):
        at.append(key)
    return tuple(at)


def _shown(value: Any, written: str) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = value if isinstance(value, str) else written
    return f"`{text if len(text) <= 40 else text[:39] + '…'}`"
