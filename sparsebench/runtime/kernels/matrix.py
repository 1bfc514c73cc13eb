"""A matrix of weights as the kernels of ``native/sparse.cpp`` read it: the parts of a file, mapped where they fit.

A matrix is dense or a bitmask with the values of its ones; its values are float32, bfloat16, int8 or int4.
``native/sparse/matrix.h`` says what the bytes are. They are those of compressed-tensors (dense) and of the packed format
(bitmask), so a file's own bytes are used; only where a row is no whole number of 64 columns, its mask is padded.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsebench.errors import ModelError, StorageError
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.native import Missing, library
from sparsebench.storage import compiled
from sparsebench.storage.coding import CodeLayout
from sparsebench.storage.words import Bytes, Scratch

if TYPE_CHECKING:
    import torch

    from sparsebench.storage.words import Words

LEVELS = ("portable", "avx2", "avx512", "avx512-vnni", "avx512-bf16", "avx512-amx")
"""Instruction sets in rising order; each kernel uses the best one for which it has code."""
TYPES = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
"""The library's numbers for types of values; vectors have one of the first two."""
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
MASK_WORD_COLUMNS = 64
"""Columns per word of a mask."""
ACTIVATION_GROUP = 64
"""Inputs that share a scale where they are rounded to 8 bits."""
LARGEST_SHARE = 0.9
"""A bitmask is used where it takes at most this share of the dense matrix's bytes."""
SAMPLED_ROWS = 64
"""Rows of a matrix whose zeros are counted first."""
MARGIN = 0.9
"""A matrix is counted in whole only where this share of the nonzeros that a sample suggests decides otherwise than the number
divided by this share does."""
SPLIT_WEIGHTS = 1 << 19
"""Floats whose zeros are removed at a time: copies stay in the cache."""
DAMAGED = ("its packed index and values do not match: the file is damaged", "pack it again")

_P, _L, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class MatrixFields(ctypes.Structure):
    """The struct ``Matrix`` of the library: numbers and addresses of a ``Matrix``."""

    _fields_ = (
        ("type", _L), ("rows", _L), ("cols", _L), ("stride", _L), ("count", _L), ("masks", _P), ("starts", _P),
        ("values", _P), ("scales", _P), ("scale_type", _L), ("group", _L),
    )  # fmt: skip


_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "sparse_level": ([], _I),
    "sparse_use": ([_I], _I),
    "sparse_needs": ([_P, _I], _I),
    "sparse_threads": ([_P, _P, _P], None),
    "sparse_multiply": ([_P, _P, _P, _P, _L, _I, _I, _I], None),
    "sparse_decode": ([_P, _P, _P, _P, _P, _L, _L, _I, _I], None),
    "sparse_expand": ([_P, _L, _L, _P, _I, _I], None),
    "sparse_flush": ([_P, _L], None),
    "sparse_skip": ([_P, _I, _I, _P, _P, ctypes.c_float, _I, _L, _L, _L, _P, _P, _I, _P], _L),
}
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@dataclass(frozen=True)
class Kernels:
    """The library, and whether it shares torch's threads; where not, it starts threads for each call."""

    library: ctypes.CDLL
    shared: bool

    @property
    def level(self) -> str:
        """The instruction set in use."""
        return LEVELS[self.library.sparse_level()]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a result should say of them."""
        return () if self.shared else ("no OpenMP of torch's was found: each product starts threads of its own",)

    def use(self, level: str) -> None:
        """Use ``level``, or the best level below it that this CPU has; for tests and tables."""
        self.library.sparse_use(LEVELS.index(level))


@functools.cache
def kernels() -> Kernels | Missing:
    """Load the kernels, compiling them if they are not in the cache; return why there are none where that fails."""
    import torch  # noqa: F401 - loads the OpenMP runtime that is looked for below

    compiled_library = library("sparse", "-pthread")
    if isinstance(compiled_library, Missing):
        return compiled_library
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(compiled_library, name)
        function.argtypes, function.restype = arguments, result
    process = ctypes.CDLL(None)
    shared = all(hasattr(process, name) for name in _OPENMP)
    if shared:
        compiled_library.sparse_threads(*(ctypes.cast(getattr(process, name), _P) for name in _OPENMP))
    return Kernels(compiled_library, shared)


@dataclass(frozen=True)
class Matrix:
    """A (rows, cols) matrix of ``value_type``, one of TYPES; dense where ``masks`` is None.

    ``values`` are uint8: dense rows one after another, or the nonzeros in order. ``masks`` (rows, bytes) uint8 have a bit
    per column, in whole words of 64; ``starts`` (rows + 1,) int64 count the values before each row. ``scales`` (rows,
    groups) are bfloat16 or float32, each for ``group_size`` columns; None for floats.
    """

    value_type: str
    rows: int
    cols: int
    values: torch.Tensor
    masks: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    group_size: int = 0

    @property
    def layout(self) -> str:
        """``dense`` or ``bitmask``."""
        return "dense" if self.masks is None else "bitmask"

    @property
    def nonzeros(self) -> int:
        """The number of stored values; of a dense matrix all."""
        return self.rows * self.cols if self.starts is None else int(self.starts[-1])

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Its parts by name."""
        parts = {name: getattr(self, name) for name in ("values", "masks", "starts", "scales")}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def nbytes(self) -> int:
        """The bytes of its parts, which one product reads."""
        return sum(part.nbytes for part in self.tensors.values())

    def fields(self, parts: dict[str, Any]) -> MatrixFields:
        """Return what the library is given, where the parts are the tensors ``parts``."""
        address = {name: part.data_ptr() for name, part in parts.items()}
        stride = 0 if "masks" in parts else parts["values"].nbytes // max(1, self.rows)
        scale = dtype_name(parts["scales"].dtype) if "scales" in parts else "float32"
        return MatrixFields(
            TYPES[self.value_type], self.rows, self.cols, stride, self.nonzeros, address.get("masks"), address.get("starts"),
            address["values"], address.get("scales"), TYPES[scale], self.group_size or max(1, self.cols),
        )  # fmt: skip


def bitmask_is_smaller(value_type: str, rows: int, cols: int, nonzeros: int) -> bool:
    """Return whether a bitmask of a matrix with this many nonzeros is so much smaller that it is used."""
    dense_bits = rows * cols * BITS[value_type]
    return dense_bits > 0 and nonzeros * BITS[value_type] + rows * cols <= LARGEST_SHARE * dense_bits


def dense(weight: torch.Tensor) -> Matrix:
    """Return a float matrix (rows, cols) as it is. Raises ModelError unless it is bfloat16 or float32."""
    import torch

    rows, cols = weight.shape
    return Matrix(_float_type(weight), rows, cols, weight.contiguous().view(torch.uint8))


def to_bitmask(weight: torch.Tensor) -> Matrix:
    """Return the bitmask of a float matrix (rows, cols). Raises ModelError unless it is bfloat16 or float32.

    -0.0 is a zero too.
    """
    import torch

    name, (rows, cols) = _float_type(weight), weight.shape
    word_type = torch.int16 if name == "bfloat16" else torch.int32
    all_masks, all_values = [], []
    for part in weight.split(max(1, SPLIT_WEIGHTS // max(1, cols))):
        if cols % MASK_WORD_COLUMNS:
            part = torch.nn.functional.pad(part, (0, -cols % MASK_WORD_COLUMNS))
        # -0.0 + 0.0 is 0.0.
        words = part.add(0.0).contiguous().view(word_type).numpy().reshape(-1)
        masks, values = _split_zeros(words.view(f"u{words.itemsize}"))
        all_masks.append(masks)
        all_values.append(values.view(np.uint8))
    return bitmask(name, rows, cols, np.concatenate(all_masks), np.concatenate(all_values))


def _float_type(weight: torch.Tensor) -> str:
    name = dtype_name(weight.dtype)
    if name not in ("bfloat16", "float32"):
        raise ModelError(f"our kernels hold bfloat16 and float32, not {weight.dtype}", "measure it in bfloat16")
    return name


def _split_zeros(words: Words) -> tuple[Bytes, Words]:
    scan = compiled.packing_kernels().scan(words, Scratch())
    masks, values = scan.split()
    return masks, words if scan.count == words.size else np.concatenate(values)


def integers(words: torch.Tensor, value_type: str, cols: int, scale: torch.Tensor, group_size: int | None) -> Matrix:
    """Return a dense matrix of int8 or int4 from words (rows, n) and scales (rows, groups) of compressed-tensors.

    Raises StorageError (without the tensor's name) where a scale is not finite or the shapes do not fit together.
    """
    import torch

    rows, groups = len(words), -(-cols // group_size) if group_size else 1
    row_words = -(-cols * BITS[value_type] // 32)
    if words.dtype != torch.int32 or words.shape[1] != row_words or scale.shape != (rows, groups):
        raise StorageError(f"{tuple(words.shape)} words and {tuple(scale.shape)} scales for {cols} columns", DAMAGED[1])
    if not bool(scale.isfinite().all()):
        raise StorageError("a scale is not finite: the file is damaged", "quantize the model again")
    scales = scale if scale.dtype == torch.bfloat16 else scale.float()
    return Matrix(
        value_type, rows, cols, words.view(torch.uint8), scales=scales.contiguous(), group_size=group_size or 0
    )


def count_nonzeros(matrix: Matrix, rows: torch.Tensor | None = None) -> int:
    """Count the values of a dense matrix that are not zero, or those of some of its rows."""
    import torch

    values = matrix.values if rows is None else matrix.values[rows]
    if matrix.value_type in ("float32", "bfloat16"):
        return int(values.view(getattr(torch, matrix.value_type)).count_nonzero())
    zero = 1 << (BITS[matrix.value_type] - 1)
    parts = (values,) if matrix.value_type == "int8" else (values & 15, values >> 4)
    return len(values) * matrix.cols - sum(int((part == zero).sum()) for part in parts)


def is_worth_bitmask(matrix: Matrix) -> bool:
    """Return whether a dense matrix has so many zeros that its bitmask is used.

    A sample of rows tells where there are far too few or more than enough: counting all takes longer than loading them.
    """
    import torch

    if matrix.rows > 4 * SAMPLED_ROWS:
        generator = torch.Generator().manual_seed(0)
        sampled_rows = torch.randint(matrix.rows, (SAMPLED_ROWS,), generator=generator, device="cpu")
        likely_nonzeros = count_nonzeros(matrix, sampled_rows) * matrix.rows // SAMPLED_ROWS
        with_fewest, with_most = (
            bitmask_is_smaller(matrix.value_type, matrix.rows, matrix.cols, int(nonzeros))
            for nonzeros in (likely_nonzeros * MARGIN, likely_nonzeros / MARGIN)
        )
        if with_fewest == with_most:
            return with_fewest
    return bitmask_is_smaller(matrix.value_type, matrix.rows, matrix.cols, count_nonzeros(matrix))


def integers_to_bitmask(matrix: Matrix) -> Matrix:
    """Return the bitmask of a dense matrix of integers."""
    rows, cols = matrix.rows, matrix.cols
    columns = matrix.values.nbytes * 8 // BITS[matrix.value_type] // max(1, rows)
    layout = CodeLayout(BITS[matrix.value_type], rows, columns)
    codes = layout.split(matrix.values.numpy().reshape(-1), Scratch()).reshape(rows, columns)
    if cols % MASK_WORD_COLUMNS:  # the codes that fill up a row's last word are no weights
        codes = np.pad(codes[:, :cols], ((0, 0), (0, -cols % MASK_WORD_COLUMNS)))
    masks, values = _split_zeros(codes.reshape(-1))
    return bitmask(
        matrix.value_type, rows, cols, masks, layout.packed(values), scales=matrix.scales, group_size=matrix.group_size
    )


def round_to_bytes(x: torch.Tensor) -> torch.Tensor:
    """Return x (…, n) as the kernels of integers see it: 8 bits, with a scale for every ACTIVATION_GROUP inputs."""
    import torch

    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % ACTIVATION_GROUP))
    groups = padded.unflatten(-1, (-1, ACTIVATION_GROUP))
    largest = groups.abs().amax(-1, True)
    # As they do, so that ties fall alike; 127 / tensor would multiply with a rounded reciprocal.
    steps = (groups * largest.new_tensor(127).div(largest.clamp(min=1e-36))).round()
    rounded = steps * (largest / 127)
    return rounded.flatten(-2)[..., : x.shape[-1]].to(x.dtype)


def bitmask(value_type: str, rows: int, cols: int, masks: Bytes, values: Bytes, **scales: Any) -> Matrix:
    """Return a matrix from the bits of its rows, each a whole number of words of 64, and its values in order.

    Raises StorageError (without the tensor's name) where the bits count another number of values than there are.
    """
    import torch

    row_bytes = -(-cols // MASK_WORD_COLUMNS) * 8
    if masks.size != rows * row_bytes:
        raise StorageError(*DAMAGED)
    # Of a mapped file the words may begin at any byte.
    counts = np.bitwise_count(masks.view(np.uint64)).reshape(rows, row_bytes // 8).sum(1, dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    if values.size != -(-int(starts[-1]) * BITS[value_type] // 8):
        raise StorageError(*DAMAGED)
    if not values.size:
        values = np.zeros(1, np.uint8)
    return Matrix(
        value_type, rows, cols, torch.from_numpy(values), torch.from_numpy(masks.reshape(rows, row_bytes)),
        torch.from_numpy(starts), **scales,
    )  # fmt: skip
