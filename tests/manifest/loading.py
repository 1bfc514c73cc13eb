"""Beginnings of manifests; a manifest from a text, loaded and checked as a file is, and the problems of one."""

import pytest

from sparsebench.manifest.load import LoadedManifest, parse_manifest
from sparsebench.manifest.problems import ManifestError
from sparsebench.plan.checks import checked

HEAD = "version: 1\nmodels:\n  - {name: m, source: hf:a/m, family: decoder}\n"
ENTRY = HEAD + "variants:\n  - "
MODEL = "version: 1\nmodels:\n  - "


def load_text(text: str, name: str) -> LoadedManifest:
    """Load and check the manifest in ``text``; relative paths start from the folder of the file ``name``."""
    return checked(parse_manifest(text, name))


def problems_of(text: str, name: str = "m.yaml") -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        load_text(text, name)
    return caught.value
