"""The compiled kernels of ``native/sparse.cpp`` under Python names; pointers in, nothing owned."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.native import Missing, library

LEVELS = ("portable", "avx2", "avx512", "avx512-vbmi2", "avx512-bf16")
"""Instruction sets in rising order; each kernel uses the best one that it has a form for."""
LAYOUTS = ("bitmask", "csr16", "runs")
TYPES = {"torch.float32": 0, "torch.bfloat16": 1}
"""What vectors may be, as the library numbers it."""
ENCODINGS = {"dense": -1, "bitmask": 0, "gaps8": 1, "gaps4": 2}

_P, _L, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SOURCE = [_I, _P, _L, _P, _L, _I, _L, _L, _P]
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "sparse_level": ([], _I),
    "sparse_use": ([_I], _I),
    "sparse_needs": ([_P, _I], _I),
    "sparse_threads": ([_P, _P, _P], None),
    "sparse_count": (_SOURCE, _L),
    "sparse_bytes": ([_I, *_SOURCE], _L),
    "sparse_encode": ([_I, *_SOURCE, _P], _I),
    "sparse_multiply": ([_P, _P, _P, _P, _L, _I, _I], None),
    "sparse_expand": ([_P, _L, _L, _P, _I], None),
}
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@dataclass(frozen=True)
class Kernels:
    """The library, its file, and whose threads it uses: torch's own, or (``shared`` false) some started for each call."""

    library: ctypes.CDLL
    path: Path
    shared: bool

    @property
    def level(self) -> str:
        """The instruction set in use."""
        return LEVELS[self.library.sparse_level()]

    def use(self, level: str) -> None:
        """Use ``level``, or the best below it that this CPU has: for tests and for tables."""
        self.library.sparse_use(LEVELS.index(level))


@functools.cache
def kernels() -> Kernels | Missing:
    """The kernels, compiled when nobody has before; or why there are none."""
    import torch  # noqa: F401 - loads the OpenMP runtime that is looked for below

    found = library("sparse", "-pthread")
    if isinstance(found, Missing):
        return found
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
    process = ctypes.CDLL(None)
    shared = all(hasattr(process, name) for name in _OPENMP)
    if shared:
        found.sparse_threads(*(ctypes.cast(getattr(process, name), _P) for name in _OPENMP))
    return Kernels(found, Path(found._name), shared)
