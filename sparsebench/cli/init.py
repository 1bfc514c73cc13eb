"""``sparsebench init`` and ``schema``: a commented manifest to start from, and the JSON Schema by which editors check it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebench import sources
from sparsebench.cli.options import FAMILY, check_name, file_to_write
from sparsebench.cli.output import emit_json, note
from sparsebench.cli.source import check_source, parse_setting
from sparsebench.errors import UserError
from sparsebench.manifest.names import FAMILIES
from sparsebench.manifest.published import MODELINE, SCHEMA_FILE, json_schema, starter
from sparsebench.paths import create
from sparsebench.plan.draft import draft
from sparsebench.plan.single import family_named, source_named
from sparsebench.runtime.engines import engines
from sparsebench.steps.registry import kinds, sweepable
from sparsebench.storage import formats

LABEL = "The name of a classification head's output; repeat it in the outputs' order."
COLUMNS = 'such as "text: review, label: stars"'


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.", parser=file_to_write)] = Path("experiments.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Your model: a folder, an alias (see models), hf:…, path:…, wheel:….")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The file, or its source, that the model is to be scored on.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help='Columns of the data whose names do not tell: "text: review, label: stars".')
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help=LABEL)] = None,
    family: FAMILY = None,
    editor: Annotated[
        bool, typer.Option("--editor", help="Also write sparsebench.schema.json beside it, and point editors to it.")
    ] = False,
) -> None:
    """Write a commented starter manifest, or the one for a model and a file of yours.

    With --model and --data the manifest names the task that fits both, and the
    usual sparsities and bits.

    \b
    sparsebench init my.yaml && sparsebench plan my.yaml
    sparsebench init my.yaml --model path:my-model --data reviews.csv
    sparsebench init my.yaml --editor
    """
    if (model is None) != (data is None) or ((columns or family or label) and not model):
        raise UserError("--model and --data go together, and the options for them", "give both, or neither")
    if path.exists() and not force:
        raise UserError(f"{path} exists", "name another file, or replace it with --force")
    texts: dict[Path, str] = {}
    if editor:
        if path.name == SCHEMA_FILE:
            raise UserError(f"{path}: --editor writes its schema there", "name the manifest otherwise")
        schema_path, schema_text = path.with_name(SCHEMA_FILE), json.dumps(manifest_schema(), indent=2) + "\n"
        # The manifests of a folder share the schema file: an identical one is no conflict.
        if not force and schema_path.exists() and schema_path.read_bytes() != schema_text.encode():
            raise UserError(f"{schema_path} exists with other contents", "replace it with --force")
        texts[schema_path] = schema_text
    manifest = _drafted(path, model, data, columns, family, label or []) if model and data else starter()
    texts[path] = (MODELINE if editor else "") + manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    for new_file, text in texts.items():
        with create(new_file) as file:
            file.write(text)
    note(f"wrote {path}; next: sparsebench plan {shlex.quote(str(path))}")


def _drafted(path: Path, model: str, data: str, columns: str | None, family: str | None, labels: list[str]) -> str:
    """Return the manifest for a model and a file, each a source or a path."""
    check_source(model)
    model_source, data_source = source_named(model), source_named(data)
    renamed_columns = parse_setting("--columns", columns, COLUMNS) if columns else {}
    if not isinstance(renamed_columns, dict) or not all(isinstance(name, str) for name in renamed_columns.values()):
        raise UserError(f"--columns {columns}: not a mapping of names", COLUMNS)
    if family is not None:
        check_name("family", family, FAMILIES)
    cache = sources.Cache()
    config = sources.read_config(model_source, cache) or {}
    if not config and model_source.kind == "path" and not model_source.location.lower().endswith(".gguf"):
        raise UserError(f"{model}: no config.json in it", "name a Hugging Face folder, or a GGUF file")
    known_family: Any = family or family_named(model_source, cache)
    return draft(model_source, known_family, config, data_source, path.parent, renamed_columns, labels)


def schema() -> None:
    """Print the manifest's JSON Schema, with which editors complete and check manifests.

    \b
    sparsebench schema > sparsebench.schema.json
    """
    emit_json(manifest_schema())


def manifest_schema() -> dict[str, Any]:
    """Return the manifest's JSON Schema, with the steps, engines and formats that are installed here."""
    steps = {
        (verb, name): sweepable(settings) for verb, kind in kinds().items() for name, settings in kind.classes().items()
    }
    return json_schema(steps, engines(), formats())
