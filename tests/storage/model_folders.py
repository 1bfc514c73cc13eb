"""Model folders for the tests of this room."""

import shutil
from pathlib import Path

import numpy as np

from sparsebench.models.files.checkpoint import Checkpoint


def prune(folder: Path, out: Path, sparsity: float) -> Path:
    """A copy of a model with random zeros in its matrices."""
    shutil.copytree(folder, out)
    checkpoint = Checkpoint(out)
    random = np.random.default_rng(0)
    for info in checkpoint.tensors.values():
        if len(info.shape) == 2:
            bits = np.memmap(out / info.file, np.uint8, "r+", info.begin, (info.numel, info.nbytes // info.numel))
            bits[random.random(info.numel) < sparsity] = 0
            bits.flush()
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
