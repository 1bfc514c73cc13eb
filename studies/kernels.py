"""How fast a layer of our kernels multiplies, beside torch's kernel for the same weights and beside reading their bytes.

    python studies/kernels.py [--threads 2] [--tokens 1] [--shape 8192x2048 …] [--zeros 0.5 …] [--level avx2] [--float32] [--wall]

Prints Markdown. Each contender has so many copies of its weights that they come from memory, as in a real model. They take
turns; a number is the median over rounds of the CPU time per product, so that other programs disturb it little, or with
``--wall``, and where there are several threads, of the wall time. "of read" is the share of the time that reading the
bytes alone would take, at the speed at which ``torch.sum`` reads a large array in the same turns. "× ours" is over our dense
kernel of the same type, "bytes" what the bytes allow there, and "× torch" over torch's dense kernel of that type.
With ``pip install openvino`` there is a row of its dense kernel for the same weights, in the number format that it chooses.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from statistics import median

import numpy
import torch
from torch.nn import functional as F

from sparsebench import processor
from sparsebench.models.files.quantized import Codes, Scheme, stored_parts
from sparsebench.native import Missing
from sparsebench.runtime.kernels import Autotuner, KernelLinear, Kernels, Matrix, kernels
from sparsebench.runtime.kernels.matrix import dense, integers, integers_to_bitmask, to_bitmask

SHAPES = ("8192x2048", "2048x8192", "1536x576", "576x1536")
ZEROS = (0.5, 0.7, 0.9)
STREAMED = 1 << 30
"""Bytes of each contender's copies together: several times the last cache."""
ROUNDS = 15
SECONDS = 0.02
"""About how long a contender's turn is."""
GROUP = 64
FLOATS = {"bf16": torch.bfloat16, "f32": torch.float32}
Product = Callable[[], object]


@dataclass
class Contender:
    """One product to time, as copies that take turns; ``size`` is the bytes of one."""

    products: Sequence[Product]
    size: int

    def __post_init__(self) -> None:
        self.next = cycle(self.products)
        self.products[0]()  # a layer may choose its way then
        start = time.perf_counter()
        self.products[0]()
        self.products[-1]()
        self.often = max(2, int(SECONDS / (time.perf_counter() - start) * 2))
        self.seconds: list[float] = []

    def turn(self, clock: Callable[[], float]) -> None:
        """Time some products."""
        start = clock()
        for _ in range(self.often):
            next(self.next)()
        self.seconds.append((clock() - start) / self.often)


def copies(size: int, make: Callable[[], Product]) -> Contender:
    """A contender with enough copies that none is in a cache when its turn comes."""
    return Contender([make() for _ in range(max(2, -(-STREAMED // size)))], size)


def compete(contenders: dict[str, Contender], clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each, measured in turns."""
    for number in range(ROUNDS + 1):
        for contender in contenders.values():
            contender.turn(clock)
            if not number:
                contender.seconds.clear()
    return {name: median(contender.seconds) for name, contender in contenders.items()}


def quantized(weight: torch.Tensor, bits: int) -> Codes:
    """The nearest integers, in one group a row or in groups of GROUP columns."""
    group = GROUP if bits == 4 else None
    grouped = weight.view(len(weight), -1, group or weight.shape[1])
    scale = (grouped.abs().amax(-1) / ((2**bits - 1) / 2)).bfloat16()
    values = (grouped / scale[..., None].float()).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return Codes(values.view(weight.shape).to(torch.int8), scale, group)


def stored(kind: str, weight: torch.Tensor, sparse: bool) -> Matrix:
    """The matrix as our kernels read it."""
    if kind in FLOATS:
        floats = weight.to(FLOATS[kind])
        return to_bitmask(floats) if sparse else dense(floats)
    codes = quantized(weight, int(kind[3:]))
    scheme = Scheme(int(kind[3:]), codes.group)
    words = dict(stored_parts(codes, "w", scheme))["w_packed"]
    whole = integers(words, kind, weight.shape[1], codes.scale, codes.group)
    return integers_to_bitmask(whole) if sparse else whole


def ours(library: Kernels, matrix: Matrix, x: torch.Tensor) -> Contender:
    """Our layer, with its parts copied."""
    tuner = Autotuner()

    def make() -> Product:
        parts = {name: part.clone() for name, part in matrix.tensors.items()}
        layer = KernelLinear(library, replace(matrix, **parts), tuner, x.dtype)
        return lambda: layer(x)

    return copies(matrix.nbytes, make)


def torchs(kind: str, weight: torch.Tensor, x: torch.Tensor) -> Contender:
    """torch's own product with dense weights of this kind."""
    if kind in FLOATS:
        floats = weight.to(FLOATS[kind])
        return copies(floats.nbytes, lambda: partial(F.linear, x, floats.clone()))
    codes = quantized(weight, int(kind[3:]))
    if kind == "int8":
        scale = codes.scale[:, 0].contiguous()
        return copies(weight.numel(), lambda: partial(torch._weight_int8pack_mm, x, codes.values.clone(), scale))
    packed = torch._convert_weight_to_int4pack_for_cpu(codes.values.int() + 8, 1)
    scales = torch.stack((codes.scale.T, torch.zeros_like(codes.scale.T)), -1).contiguous()
    multiply = torch._weight_int4pack_mm_for_cpu
    return copies(packed.nbytes, lambda: partial(multiply, x, packed.clone(), GROUP, scales))


def openvinos(kind: str, weight: torch.Tensor, x: torch.Tensor) -> Contender:
    """OpenVINO's product with the same weights: a constant that it decompresses in the layer. It takes and gives float32."""
    import openvino
    from openvino import opset13 as nodes

    core, (rows, cols) = openvino.Core(), weight.shape
    choices = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}

    def constant() -> tuple[openvino.Node, numpy.ndarray]:
        """The weights, and the numbers behind them: the node does not copy these."""
        if kind == "f32":
            words = weight.numpy().copy()
            return nodes.constant(words), words
        if kind == "bf16":
            words = weight.bfloat16().view(torch.uint16).numpy()
            return nodes.convert(nodes.constant(openvino.Tensor(words, weight.shape, openvino.Type.bf16)), "f32"), words
        codes = quantized(weight, int(kind[3:]))
        values, scale = codes.values.view(rows, codes.scale.shape[1], -1), codes.scale.float()[..., None].numpy()
        words, element = values.numpy(), openvino.Type.i8
        if kind == "int4":
            low, high = (values.view(-1)[first::2].to(torch.uint8) & 15 for first in (0, 1))
            words, element = (low | high << 4).numpy(), openvino.Type.i4
        integers = nodes.convert(nodes.constant(openvino.Tensor(words, values.shape, element)), "f32")
        return nodes.reshape(
            nodes.multiply(integers, nodes.constant(scale)), nodes.constant([rows, cols]), False
        ), words

    def make() -> Product:
        given, (weights, words) = nodes.parameter([len(x), cols], openvino.Type.f32), constant()
        model = openvino.Model([nodes.matmul(given, weights, False, True)], [given])
        request = core.compile_model(model, "CPU", choices).create_infer_request()
        request.set_input_tensor(openvino.Tensor(x.float().numpy()))
        return lambda: (request.infer(), words)

    return copies(constant()[1].nbytes, make)


def table(
    library: Kernels, shape: str, kinds: Sequence[str], zeros: Sequence[float], tokens: int, clock: Callable[[], float]
) -> None:
    """The rows of one shape."""
    rows, cols = (int(part) for part in shape.split("x"))
    torch.manual_seed(0)
    base, x = torch.randn(rows, cols) * 0.02, torch.randn(tokens, cols).to(FLOATS.get(kinds[0], torch.bfloat16))
    array = torch.zeros(STREAMED // 4)
    for kind in kinds:
        contenders = {"read": Contender([array.sum], array.nbytes), "torch": torchs(kind, base, x)}
        if find_spec("openvino"):
            contenders["openvino"] = openvinos(kind, base, x)
        for share in (0.0, *zeros):
            weight = torch.where(torch.rand(rows, cols) < share, 0.0, base)
            contenders[f"{share:.0%}"] = ours(library, stored(kind, weight, share > 0), x)
        took = compete(contenders, clock)
        speed, whole = contenders["read"].size / took["read"], contenders["0%"]
        for name in list(contenders)[1:]:
            size, seconds = contenders[name].size, took[name]
            compared = ["", "", ""] if name == "torch" else [
                f"{took['0%'] / seconds:.2f}", f"{whole.size / size:.2f}", f"{took['torch'] / seconds:.2f}"
            ]  # fmt: skip
            cells = [shape, kind, name, f"{seconds * 1e6:.0f}", f"{size / speed / seconds:.0%}", *compared]
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nread: {speed / 1e9:.1f} GB/s\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--shape", action="append", help="rows x columns")
    parser.add_argument("--zeros", action="append", type=float)
    parser.add_argument("--level", help="an instruction set below the best one")
    parser.add_argument("--float32", action="store_true", help="weights and inputs in float32")
    parser.add_argument("--wall", action="store_true", help="wall time, not CPU time")
    chosen = parser.parse_args()
    library = kernels()
    if isinstance(library, Missing):
        raise SystemExit(library.reason)
    if chosen.level:
        library.use(chosen.level)
    torch.set_num_threads(chosen.threads)
    wall = chosen.wall or chosen.threads > 1
    print(
        f"{processor.cpu_model()}, {library.level}, torch {torch.__version__}, threads: {chosen.threads}, "
        f"tokens: {chosen.tokens}, {'wall' if wall else 'CPU'} time, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| layer | weights | zeros | µs | of read | × ours | bytes | × torch |\n|---|---|--:|--:|--:|--:|--:|--:|")
    with torch.inference_mode():
        for shape in chosen.shape or SHAPES:
            clock = time.perf_counter if wall else time.process_time
            kinds = ("f32",) if chosen.float32 else ("bf16", "int8", "int4")
            table(library, shape, kinds, chosen.zeros or ZEROS, chosen.tokens, clock)


if __name__ == "__main__":
    main()
