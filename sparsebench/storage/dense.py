"""The dense format: the model folder as it is, safetensors with every zero stored."""

from __future__ import annotations

from pathlib import Path

from sparsebench.models.checkpoint import Checkpoint


def sizes(folder: Path) -> tuple[int, dict[str, int]]:
    """Bytes of the weight files, headers included, and of each tensor by name."""
    checkpoint = Checkpoint(folder)
    files = sum((checkpoint.folder / file).stat().st_size for file in checkpoint.files)
    return files, {name: info.nbytes for name, info in checkpoint.tensors.items()}
