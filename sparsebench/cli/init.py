"""``sparsebench init``: a commented manifest to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(init)


def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("experiments.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented starter manifest.

    \b
    sparsebench init my.yaml && sparsebench plan my.yaml
    """
    from sparsebench.cli.output import note
    from sparsebench.errors import UserError
    from sparsebench.manifest.starter import starter

    if path.exists() and not force:
        raise UserError(f"{path} exists", "name another file, or replace it with --force")
    path.write_text(starter())
    note(f"wrote {path}; next: sparsebench plan {path}")
