"""Who does the work on the bits: our C++ where it can be compiled, else numpy. The bytes are the same either way."""

from __future__ import annotations

import functools

from sparsebench.storage.compiled import Compiled, CompiledScan
from sparsebench.storage.portable import NumpyScan, Portable

PackingKernels = Compiled | Portable
Scan = CompiledScan | NumpyScan


@functools.cache
def chosen() -> PackingKernels:
    """The fastest that this machine has."""
    return Compiled.available() or Portable()
