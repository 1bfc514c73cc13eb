"""``sparsebench models``: the models that have a short name."""

from __future__ import annotations

from dataclasses import asdict

from sparsebench.cli.options import JSON
from sparsebench.cli.output import emit_json, emit_table
from sparsebench.sources import KNOWN
from sparsebench.units import size


def models(as_json: JSON = False) -> None:
    """List the models that have an alias. Commands and manifests take an alias as a source.

    `download` is empty for models of the hub: `plan` asks the hub for their sizes.

    \b
    sparsebench models
    sparsebench inspect smollm2-135m
    """
    if as_json:
        emit_json([asdict(model) for model in KNOWN.values()])
        return
    rows = []
    for model in KNOWN.values():
        download = size(model.size) if model.size else ""
        rows.append([model.alias, model.family, _count(model.parameters), download, model.licence, model.origin])
    emit_table(["alias", "family", "parameters", "download", "licence", "where from"], rows)


def _count(parameters: int) -> str:
    """``2.4M`` or ``1.78B``."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
