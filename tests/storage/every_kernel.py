"""Who may do the work on the bits: each of them, by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest

from sparsebench.storage import compiled
from sparsebench.storage.compiled import CompiledKernels, NumpyKernels

CODERS = ["numpy", "compiled", "vectors"]
NAMES = [*CODERS, "128-bit checksum"]


@contextmanager
def using(name: str) -> Iterator[None]:
    """All that is done here is done by numpy, by our C++ without vectors, or with those that this machine has."""
    chosen: compiled.PackingKernels = NumpyKernels()
    if name != "numpy":
        native = CompiledKernels.available()
        if native is None:
            pytest.skip("no C++ compiler")
        narrow = {"compiled": (0, 0), "128-bit checksum": (0, min(1, native.crc_simd))}
        simd, crc_simd = narrow.get(name, (native.simd, native.crc_simd))
        chosen = replace(native, simd=simd, crc_simd=crc_simd)
    with mock.patch.object(compiled, "packing_kernels", return_value=chosen):
        yield
