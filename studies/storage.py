"""How fast a model is packed, archived, restored and assessed, and how small it gets.

    python studies/storage.py [--model FOLDER --family decoder] [--pruned random|magnitude] [--blocks 2]
                                 [--dtype BF16 --dtype F32] [--sparsity 0.5 …] [--numpy] [--folder FOLDER]
    python studies/storage.py --in-memory [--dtype …] [--sparsity …]

Without --model: normal weights in the shapes of a 1B Llama. Prints two Markdown tables. Speeds are dense MB per second of CPU
time (wall time behind the stroke), best of three, files in the page cache. The floors are the same traffic without any
packing: read the dense bytes and write as many as the packed file has, or the reverse. Sizes are those of the prunable tensors.

--in-memory prints what the bits alone cost, without files: time over that of copying the dense bytes, one thread's CPU time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.shape.topology import parts
from sparsebench.storage import compiled, formats, measure
from sparsebench.storage.compiled import NumpyKernels
from sparsebench.storage.container import read_bytes
from sparsebench.storage.packed import decode, encode
from sparsebench.storage.words import Scratch
from sparsebench.structure import assess

SHAPES = {
    "self_attn.q_proj": (2048, 2048), "self_attn.k_proj": (512, 2048), "self_attn.v_proj": (512, 2048),
    "self_attn.o_proj": (2048, 2048), "mlp.gate_proj": (8192, 2048), "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}  # fmt: skip
SPARSITY = [0.0, 0.1, 0.5, 0.75, 0.9, 0.95, 0.99]
WORD = {"BF16": np.uint16, "F32": np.uint32}
REPEATS = 3


@dataclass(frozen=True)
class Matrix:
    """One weight matrix as words of bits; a copy is made when it is asked for."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    words: Callable[[], np.ndarray]


def normal(blocks: int, dtype: str) -> Iterator[Matrix]:
    """Normal weights in the shapes of a 1B Llama."""
    random = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        bits = (random.standard_normal(shape, np.float32) * np.float32(0.02)).view(np.uint32)
        return bits if dtype == "F32" else (bits >> 16).astype(np.uint16)

    for block in range(blocks):
        for name, shape in SHAPES.items():
            yield Matrix(f"model.layers.{block}.{name}.weight", shape, dtype, partial(draw, shape))


def real(folder: Path, family: str) -> Iterator[Matrix]:
    """The prunable matrices of a model."""
    checkpoint = Checkpoint(folder)
    for name, part in parts(checkpoint, family).items():
        if part.prunable:
            info = checkpoint.tensors[name]
            yield Matrix(name, info.shape, info.dtype, partial(_words, folder / info.file, info))


def _words(path: Path, info: TensorInfo) -> np.ndarray:
    return read_bytes(path, info.begin, info.end).view(WORD[info.dtype])


def prune(words: np.ndarray, sparsity: float, by: str) -> np.ndarray:
    """Zeros at random, or in place of the smallest magnitudes."""
    if by == "random":
        words[np.random.default_rng(1).random(words.shape, np.float32) < sparsity] = 0
    elif sparsity:
        magnitudes = words & words.dtype.type(2 ** (8 * words.itemsize - 1) - 1)
        place = int(sparsity * words.size)
        words[magnitudes < np.partition(magnitudes.reshape(-1), place)[place]] = 0
    return words


def write_model(folder: Path, matrices: list[Matrix], sparsity: float, by: str, config: str) -> None:
    """A model folder with these matrices, pruned."""
    header, end = {}, 0
    for matrix in matrices:
        begin, end = end, end + int(np.prod(matrix.shape)) * np.dtype(WORD[matrix.dtype]).itemsize
        header[matrix.name] = {"dtype": matrix.dtype, "shape": matrix.shape, "data_offsets": [begin, end]}
    folder.mkdir()
    (folder / "config.json").write_text(config)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for matrix in matrices:
            file.write(prune(matrix.words(), sparsity, by).data)


def rates(amount: float, act: Callable[[], object], clear: Path | None = None) -> str:
    """``amount`` per second, by CPU time and by wall time, the best of a few repetitions of each."""
    wall, cpu = [], []
    for _ in range(REPEATS):
        if clear:
            shutil.rmtree(clear, ignore_errors=True)
        start = time.perf_counter(), time.process_time()
        act()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return f"{amount / min(cpu):.0f} / {amount / min(wall):.0f}"


def copy(source: Path, target: Path, size: int) -> None:
    """Read a file and write ``size`` bytes, in pieces, of it and if need be of its last piece again."""
    piece = bytearray(1 << 22)
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while reader.readinto(piece) or size > 0:
            size -= writer.write(memoryview(piece)[: max(0, min(size, len(piece)))])


def speeds_of(work: Path, dense: Path, family: str) -> list[str]:
    """Packing and unpacking with their floors, archiving and restoring, and the structure of one model, as cells."""
    file, restored, floor = dense / "model.safetensors", work / "restored", work / "floor"
    size = file.stat().st_size
    cells = []
    for name in ("packed", "archive"):
        form, stored = formats()[name], work / name
        assert form.write and form.restore
        there = rates(size / 1e6, partial(form.write, dense, stored), stored)
        back = rates(size / 1e6, partial(form.restore, stored, restored), restored)
        if (restored / file.name).read_bytes() != file.read_bytes():
            raise SystemExit(f"{dense} does not come back from {name}")
        small = stored / f"{file.name}.{name}"
        floors = [partial(copy, file, floor, small.stat().st_size), partial(copy, small, floor, size)]
        for rate, act in zip((there, back), floors, strict=True):
            cells += [rate, rates(size / 1e6, act)] if name == "packed" else [rate]
        shutil.rmtree(restored)
    weights = sum(info.numel for info in Checkpoint(dense).tensors.values())
    return [*cells, rates(weights / 1e6, partial(assess, dense, family, [1e-3, 1e-2], [0.1, 0.5, 1.0]))]


def sizes_of(work: Path, dense: Path, family: str) -> list[str]:
    """The formats and the bounds in percent of the dense bytes, and against each other."""
    result = measure(dense, family, ["dense", "packed", "archive"], work)
    sizes = {size.format: size.prunable_bytes for size in result.sizes}
    raw, entropy = result.raw_value_bound, result.entropy_bound
    shares = [100 * size / sizes["dense"] for size in (sizes["packed"], raw, sizes["archive"], entropy)]
    ratios = [sizes["packed"] / raw, sizes["archive"] / raw, sizes["archive"] / entropy]
    return [*(f"{share:.2f}%" for share in shares), *(f"{ratio:.3f}" for ratio in ratios)]


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


def on_disk(chosen: argparse.Namespace) -> None:
    """Whole folders."""
    speeds, sizes = [], []
    dtypes = chosen.dtype or ["BF16", "F32"] if not chosen.model else [""]
    config = (chosen.model / "config.json").read_text() if chosen.model else '{"model_type": "llama"}'
    for dtype in dtypes:
        for sparsity in chosen.sparsity or SPARSITY:
            found = list(real(chosen.model, chosen.family) if chosen.model else normal(chosen.blocks, dtype))
            with tempfile.TemporaryDirectory(dir=chosen.folder) as work:
                write_model(Path(work) / "dense", found, sparsity, chosen.pruned, config)
                of = [found[0].dtype, f"{sparsity:.0%}"]
                speeds.append([*of, *speeds_of(Path(work), Path(work) / "dense", chosen.family)])
                sizes.append([*of, *sizes_of(Path(work), Path(work) / "dense", chosen.family)])
    columns = ["pack", "its floor", "unpack", "its floor", "archive", "restore", "structure, M weights/s"]
    table(["dtype", "sparsity", *columns], speeds)
    columns = [
        "packed",
        "raw-value bound",
        "archive",
        "entropy bound",
        "packed / raw",
        "archive / raw",
        "archive / entropy",
    ]
    table(["dtype", "sparsity", *columns], sizes)


def in_memory(chosen: argparse.Namespace) -> None:
    """Encoding, decoding and checksum of one matrix of 8192 × 2048, against copying it."""
    rows = []
    for dtype in chosen.dtype or ["BF16", "F32"]:
        for sparsity in chosen.sparsity or SPARSITY:
            matrix = next(one for one in normal(1, dtype) if one.shape == (8192, 2048))
            bits = prune(matrix.words(), sparsity, chosen.pruned).reshape(-1).view(np.uint8)
            item, scratch = np.dtype(WORD[dtype]).itemsize, Scratch()
            floor = least(partial(np.copyto, np.empty_like(bits), bits))
            found = encode(bits, item)
            values = np.concatenate([piece.reshape(-1).view(np.uint8) for piece in found.values])
            times = [
                least(partial(encode, bits, item, scratch)),
                least(partial(decode, found.encoding, found.index, values, bits.size, item, scratch)),
                least(partial(compiled.packing_kernels().crc32, bits)),
            ]
            ratios = [f"{seconds / floor:.2f}" for seconds in times]
            rows.append([dtype, f"{sparsity:.0%}", found.encoding, f"{bits.size / floor / 1e9:.1f}", *ratios])
    table(["dtype", "sparsity", "encoding", "copy, GB/s", "encode", "decode", "checksum"], rows)


def least(act: Callable[[], object]) -> float:
    """Seconds of this thread's CPU time, the least of seven."""
    found = []
    for _ in range(7):
        start = time.thread_time()
        act()
        found.append(time.thread_time() - start)
    return min(found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; its prunable matrices are taken")
    parser.add_argument("--family", default="decoder")
    parser.add_argument("--pruned", choices=["random", "magnitude"], default="random")
    parser.add_argument("--blocks", type=int, default=2, help="transformer blocks of normal weights, 61M each")
    parser.add_argument("--dtype", action="append", choices=["BF16", "F32"])
    parser.add_argument("--sparsity", action="append", type=float)
    parser.add_argument("--numpy", action="store_true", help="as on a machine without a compiler")
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--folder", help="where to work; default: the system's temporary folder")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        if chosen.numpy:
            stack.enter_context(mock.patch.object(compiled, "packing_kernels", return_value=NumpyKernels()))
        (in_memory if chosen.in_memory else on_disk)(chosen)


if __name__ == "__main__":
    main()
