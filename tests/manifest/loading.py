"""A manifest from a text, loaded and checked as a file is."""

from sparsebench.manifest.load import LoadedManifest, parse_manifest
from sparsebench.plan.checks import checked


def load_text(text: str, name: str) -> LoadedManifest:
    """Load and check the manifest in ``text``; relative paths start from the folder of the file ``name``."""
    return checked(parse_manifest(text, name))
