"""``sparsebench init``: a commented manifest to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import EXPERIMENT


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=EXPERIMENT)(init)


def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("experiments.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    editor: Annotated[
        bool, typer.Option("--editor", help="Also write sparsebench.schema.json beside it, and point editors to it.")
    ] = False,
) -> None:
    """Write a commented starter manifest.

    \b
    sparsebench init my.yaml && sparsebench plan my.yaml
    sparsebench init my.yaml --editor
    """
    import json

    from sparsebench.cli.output import note
    from sparsebench.cli.schema import manifest_schema
    from sparsebench.errors import UserError
    from sparsebench.manifest.published import FILE, MODELINE
    from sparsebench.manifest.starter import starter
    from sparsebench.paths import create

    if path.exists() and not force:
        raise UserError(f"{path} exists", "name another file, or replace it with --force")
    try:
        with create(path) as file:
            file.write((MODELINE if editor else "") + starter())
        if editor:
            with create(path.with_name(FILE)) as file:
                file.write(json.dumps(manifest_schema(), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}", "name a file that can be written") from error
    note(f"wrote {path}; next: sparsebench plan {path}")
