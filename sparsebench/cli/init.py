"""``sparsebench init`` and ``schema``: a commented manifest to start from, and the JSON Schema by which editors check it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebench.cli.options import file_to_write
from sparsebench.cli.output import emit_json, note
from sparsebench.errors import UserError
from sparsebench.manifest.published import FILE, MODELINE, json_schema, starter
from sparsebench.paths import create
from sparsebench.runtime.engines import engines
from sparsebench.steps.registry import kinds, sweepable
from sparsebench.storage import formats


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.", parser=file_to_write)] = Path("experiments.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    editor: Annotated[
        bool, typer.Option("--editor", help="Also write sparsebench.schema.json beside it, and point editors to it.")
    ] = False,
) -> None:
    """Write a commented starter manifest.

    \b
    sparsebench init my.yaml && sparsebench plan my.yaml
    sparsebench init my.yaml --editor
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists", "name another file, or replace it with --force")
    beside, text = path.with_name(FILE), json.dumps(manifest_schema(), indent=2) + "\n" if editor else ""
    # The manifests of a folder share the schema file: an identical one is no conflict.
    if editor and not force and beside.exists() and beside.read_bytes() != text.encode():
        raise UserError(f"{beside} exists with other contents", "replace it with --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    with create(path) as file:
        file.write((MODELINE if editor else "") + starter())
    if editor:
        with create(beside) as file:
            file.write(text)
    note(f"wrote {path}; next: sparsebench plan {path}")


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
