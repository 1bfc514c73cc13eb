"""Engines: each one file and one row here. ``engine(name)`` imports only the one that is asked for."""

from __future__ import annotations

from importlib import import_module

from sparsebench.errors import MeasureError
from sparsebench.runtime.engines.base import Engine

ENGINES: dict[str, str] = {
    "deepspeed": "sparsebench.runtime.engines.deepspeed:DeepSpeed",
    "deepspeed-zero3": "sparsebench.runtime.engines.zero3:Zero3",
    "hf": "sparsebench.runtime.engines.hf:HuggingFace",
    "int8": "sparsebench.runtime.engines.int8:Int8",
    "sparse": "sparsebench.runtime.engines.sparse:Sparse",
}
SHARDING = frozenset({"deepspeed", "deepspeed-zero3"})
"""Those that run at more than one rank."""


def engine(name: str) -> Engine:
    """The engine of that name. Raises MeasureError for one that does not exist."""
    if name not in ENGINES:
        raise MeasureError(f"no engine {name!r}", f"engines are {', '.join(sorted(ENGINES))}")
    module, attribute = ENGINES[name].split(":")
    made: Engine = getattr(import_module(module), attribute)()
    return made
