"""``sparsebench schema``: the manifest's JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

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

    emit_json(manifest_schema())


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema with all that is installed here."""
    from sparsebench.manifest.published import json_schema
    from sparsebench.runtime.engines import engines
    from sparsebench.steps.registry import kinds, swept
    from sparsebench.storage import formats

    steps = {(verb, name): swept(own) for verb, kind in kinds().items() for name, own in kind.settings().items()}
    return json_schema(steps, engines(), formats())
