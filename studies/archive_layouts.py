"""Which bits to put together, and how hard zstd should work: the choice behind the archive format.

    python studies/archive_layouts.py [--model FOLDER --family decoder] [--pruned random|magnitude] [--sparsity 0.5 …]

Takes the nonzero values of normal bfloat16 weights, or of a model's prunable matrices, rotates the words by r bits, splits
them into planes and compresses each. Prints a Markdown table: bytes over the entropy bound of the values (an index costs the
same in every column), and MB of values per second of CPU time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import zstandard
from storage import WORD, normal, prune, real

from sparsebench.storage import archive, compiled
from sparsebench.storage.measure import _entropy_bits, _upper_halves

ROTATIONS = [0, 1, 2, 3, 4, 5]


def compressors() -> dict[str, zstandard.ZstdCompressor]:
    """By name: without a search as the archive does it, and zstd's own levels."""
    return {"no search": archive._compressors()[0]} | {
        f"level {level}": zstandard.ZstdCompressor(level=level) for level in (1, 3, 9)
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--family", default="decoder")
    parser.add_argument("--pruned", choices=["random", "magnitude"], default="random")
    parser.add_argument("--sparsity", action="append", type=float)
    parser.add_argument("--matrices", type=int, default=14, help="how many of the model's, evenly spaced")
    chosen = parser.parse_args()
    found = list(real(chosen.model, chosen.family) if chosen.model else normal(1, "BF16"))
    found = found[:: max(1, len(found) // chosen.matrices)]
    columns = ["sparsity", "zstd", *(f"r = {rotate}" for rotate in ROTATIONS), "MB/s at r = 4"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for sparsity in chosen.sparsity or [0.0, 0.5, 0.9, 0.95]:
        values = []
        for matrix in found:
            words = prune(matrix.words(), sparsity, chosen.pruned).reshape(-1)
            values.append(words[words != 0])
        item = np.dtype(WORD[found[0].dtype]).itemsize
        floor = sum(
            _entropy_bits(_upper_halves(each.view(np.uint8), item)) / 8 + each.size * (item - 2) for each in values
        )
        for name, compressor in compressors().items():
            cells, rate = [], 0.0
            for rotate in ROTATIONS:
                start = time.process_time()
                planes = (plane for each in values for plane in compiled.packing_kernels().split_planes(each, rotate))
                size = sum(len(compressor.compress(plane.data)) for plane in planes)
                rate = (
                    sum(each.nbytes for each in values) / 1e6 / (time.process_time() - start) if rotate == 4 else rate
                )
                cells.append(f"{size / floor:.3f}")
            print(f"| {sparsity:.0%} | {name} | {' | '.join(cells)} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    main()
