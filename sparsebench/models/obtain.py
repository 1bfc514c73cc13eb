"""Making a model's prepared folder from its source: fetched and converted, or random weights of a real architecture."""

from __future__ import annotations

from pathlib import Path

from sparsebench import sources
from sparsebench.manifest.schema import ManifestModel
from sparsebench.models.prepare import prepare
from sparsebench.models.random_weights import write_random


def weight_bytes(fetched: Path) -> int:
    """Return the bytes of the weights as fetched, before any conversion: of a file, or of a folder's weight files."""
    if fetched.is_file():
        return fetched.stat().st_size
    for pattern in ("*.safetensors", "*.bin"):
        if found := sum(path.stat().st_size for path in fetched.glob(pattern)):
            return found
    return 0


def obtain(model: ManifestModel, out: Path, cache: sources.Cache, seed: int) -> Path:
    """Write ``model`` to ``out`` as a Hugging Face folder of safetensors in its precision; it appears whole.

    Weight files of a cache that need no conversion are hard-linked; those of a ``path:``, which its owner may edit, are
    copied. Raises SourceError when the model cannot be fetched, ModelError when it cannot be read.
    """
    if model.source == "random":
        return write_random(model.architecture or {}, out, model.family, model.dtype, seed)
    source = sources.parse(model.source)
    fetched = sources.fetch(source, cache)
    return prepare(fetched, out, model.family, model.dtype, link=source.kind != "path")
