"""How fast a model is packed, unpacked and assessed, and how small it gets: random weights in the shapes of a 1B Llama.

    python benchmarks/storage.py [--blocks 2] [--dtype BF16 --dtype F32] [--sparsity 0.5 …] [--folder FOLDER]

Prints a Markdown table. MB/s are dense bytes over wall time / over CPU time, best of three, files in the page cache; where
the two differ, the process waited for the disk or for other processes. The floor is the same traffic without any
packing: read the dense bytes, write as many bytes as the packed file has.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sparsebench.storage import measure, pack, unpack
from sparsebench.structure import assess

SHAPES = {
    "self_attn.q_proj": (2048, 2048), "self_attn.k_proj": (512, 2048), "self_attn.v_proj": (512, 2048),
    "self_attn.o_proj": (2048, 2048), "mlp.gate_proj": (8192, 2048), "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}  # fmt: skip
REPEATS = 3


def write_model(folder: Path, blocks: int, dtype: str, sparsity: float) -> int:
    """A folder with normal weights, random ones of which are zero; returns the number of weights."""
    random = np.random.default_rng(0)
    item = {"BF16": 2, "F32": 4}[dtype]
    header, end = {}, 0
    names = [
        (f"model.layers.{block}.{name}.weight", shape) for block in range(blocks) for name, shape in SHAPES.items()
    ]
    for name, shape in names:
        begin, end = end, end + int(np.prod(shape)) * item
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in names:
            weights = random.standard_normal(shape, np.float32) * np.float32(0.02)
            weights[random.random(shape, np.float32) < sparsity] = 0
            file.write((weights if dtype == "F32" else (weights.view(np.uint32) >> 16).astype(np.uint16)).data)
    return end // item


def rates(amount: float, act: Callable[[], object], clear: Path | None = None) -> str:
    """``amount`` per second, by wall time and by CPU time, the best of a few repetitions of each."""
    wall, cpu = [], []
    for _ in range(REPEATS):
        if clear:
            shutil.rmtree(clear, ignore_errors=True)
        start = time.perf_counter(), time.process_time()
        act()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return f"{amount / min(wall):.0f} / {amount / min(cpu):.0f}"


def floor(source: Path, target: Path, size: int) -> None:
    """Read a file and write the first ``size`` bytes of it again, in pieces."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while piece := reader.read(1 << 23):
            writer.write(piece[: max(size, 0)])
            size -= len(piece)


def row(work: Path, blocks: int, dtype: str, sparsity: float) -> str:
    """One line of the table."""
    dense, packed, restored = work / "dense", work / "packed", work / "restored"
    weights = write_model(dense, blocks, dtype, sparsity)
    summary = pack(dense, packed)
    megabytes = summary.dense_bytes / 1e6
    speeds = [
        rates(megabytes, lambda: pack(dense, packed), packed),
        rates(megabytes, lambda: unpack(packed, restored), restored),
        rates(megabytes, lambda: floor(dense / "model.safetensors", work / "floor", summary.packed_bytes)),
        rates(weights / 1e6, lambda: assess(dense, "decoder", [1e-3, 1e-2], [0.1, 0.5, 1.0])),
    ]
    if (restored / "model.safetensors").read_bytes() != (dense / "model.safetensors").read_bytes():
        raise SystemExit(f"{dtype} at {sparsity:.0%} does not come back")
    result = measure(dense, "decoder", ["packed"], work)
    sizes = (result.sizes[0].bytes, result.raw_value_bound, result.entropy_bound)
    shares = [f"{100 * size / summary.dense_bytes:.2f}%" for size in sizes]
    cells = [dtype, f"{sparsity:.0%}", " ".join(sorted(summary.encodings)), *speeds, *shares]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2, help="transformer blocks, 61M weights each")
    parser.add_argument("--dtype", action="append", choices=["BF16", "F32"])
    parser.add_argument("--sparsity", action="append", type=float)
    parser.add_argument("--folder", help="where to work; default: the system's temporary folder")
    chosen = parser.parse_args()
    speeds = ["pack MB/s", "unpack MB/s", "floor MB/s", "structure M weights/s"]
    columns = ["dtype", "sparsity", "encoding", *speeds, "packed", "raw-value bound", "entropy bound"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for dtype in chosen.dtype or ["BF16", "F32"]:
        for sparsity in chosen.sparsity or [0.0, 0.1, 0.5, 0.9, 0.95, 0.99]:
            with tempfile.TemporaryDirectory(dir=chosen.folder) as work:
                print(row(Path(work), chosen.blocks, dtype, sparsity), flush=True)


if __name__ == "__main__":
    main()
