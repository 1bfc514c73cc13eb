"""``sparsebench schema``: the manifest's JSON Schema, for editors."""

from __future__ import annotations

import typer

from sparsebench.cli.options import EXPERIMENT


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=EXPERIMENT)(schema)


def schema() -> None:
    """Print the manifest's JSON Schema, by which editors complete and check it.

    \b
    sparsebench schema > sparsebench.schema.json
    """
    from sparsebench.cli.output import emit_json
    from sparsebench.manifest.published import json_schema

    emit_json(json_schema())
