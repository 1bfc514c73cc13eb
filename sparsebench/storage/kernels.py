"""The choice of kernels: C++ where it can be compiled, else numpy. The resulting bytes are the same."""

from __future__ import annotations

import functools

from sparsebench.storage.compiled import Compiled, CompiledScan
from sparsebench.storage.portable import NumpyScan, Portable

PackingKernels = Compiled | Portable
Scan = CompiledScan | NumpyScan


@functools.cache
def chosen() -> PackingKernels:
    """Return the fastest kernels that this machine has."""
    return Compiled.available() or Portable()
