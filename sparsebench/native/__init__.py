"""Our C++: one source file, one shared library with a C ABI, compiled on first use and kept in the cache.

Loaded through ctypes, so that neither Python's headers nor ninja nor torch's headers are needed. Without a compiler
``library`` says why, and its callers take a slower way that gives the same numbers.
"""

from sparsebench.native.build import Missing, library

__all__ = ["Missing", "library"]
