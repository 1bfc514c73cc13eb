"""Beginnings of manifests, and the problems of a whole one."""

import pytest

from sparsebench.manifest.problems import ManifestError
from tests.manifest.loading import load_text

HEAD = "version: 1\nmodels:\n  - {name: m, source: hf:a/m, family: decoder}\n"
ENTRY = HEAD + "variants:\n  - "
MODEL = "version: 1\nmodels:\n  - "


def problems_of(text: str, name: str = "m.yaml") -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        load_text(text, name)
    return caught.value
