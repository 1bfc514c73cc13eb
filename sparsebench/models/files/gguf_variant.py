"""A variant that is a GGUF file: the file, the floats that it stands for, and how config.json says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError

KEY, GGUF_FILE = "gguf", "model.gguf"
"""The key of a config.json that names the GGUF type of its weights, and the file beside it that holds them so. The
folder's other weights are the floats that the file stands for, in the checkpoint's precision."""


def is_gguf(config: Mapping[str, Any]) -> bool:
    """Return whether the weights of a folder with this config.json are those of a GGUF file beside it."""
    return bool(config.get(KEY))


def gguf_file(folder: Path) -> Path | None:
    """Return the GGUF file of a variant that is one; None for another model. Raises ModelError where it is missing."""
    if not is_gguf(bounded.read_object(folder / "config.json")):
        return None
    if not (folder / GGUF_FILE).is_file():
        raise ModelError(f"{folder}: no {GGUF_FILE}, which its config.json names", "make the variant again")
    return folder / GGUF_FILE
