"""sparsebench: what does sparsity buy, and what does it cost?

The functions are for notebooks (``sparsebench.notebook``) and are imported when they are first used.
"""

from importlib import import_module
from typing import Any

__all__ = ["__version__", "apply", "inspect", "load", "measure", "score", "sizes", "sql"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("sparsebench.notebook"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
