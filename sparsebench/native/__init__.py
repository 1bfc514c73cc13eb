"""Our C++: each source file is a shared library with a C ABI, compiled on first use and kept in the cache.

Libraries are loaded through ctypes, so neither Python's headers nor ninja nor torch's headers are needed. Without a
compiler ``library`` returns the reason; its callers then take a slower way with the same results, or refuse (the skip
engine).
"""

from sparsebench.native.build import Missing, library

__all__ = ["Missing", "library"]
