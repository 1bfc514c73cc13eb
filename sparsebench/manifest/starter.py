"""The manifest that ``sparsebench init`` writes."""

from __future__ import annotations

from importlib import resources


def starter() -> str:
    """Return a commented manifest that runs as it is: two small real models, fetched from the package index."""
    return resources.files(__package__).joinpath("template.yaml").read_text(encoding="utf-8")
