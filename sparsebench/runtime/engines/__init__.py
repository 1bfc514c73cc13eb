"""The table of engines. An engine is one file and one row here; third parties add a row by an entry point.

An entry point in the group ``sparsebench.engines`` names an ``EngineInfo``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

from sparsebench.errors import MeasureError
from sparsebench.plugins import table


@dataclass(frozen=True)
class EngineInfo:
    """One engine: ``import_path`` is ``module:class``, imported on first use; the other fields are needed before that."""

    name: str
    import_path: str
    _: KW_ONLY
    shards: bool = False
    """Whether it runs at more than one rank."""
    cuts_first: bool = False
    """Whether several ranks cut bfloat16 weights before widening them, so that each rank widens only its share."""
    offloads: bool = False
    """Whether parameters are kept in main memory, whatever the device."""
    encodings: tuple[str, ...] = ("float",)
    """The stored weights that it runs: float, int8, int4; quantized ones at one rank only."""
    skips_zeros: bool = False
    """Whether its kernels skip zeros, so that sparsity can make it faster."""
    reads_packed: bool = False
    """Whether it loads packed folders."""
    skips_weights: bool = False
    """Whether it runs models that use only some of their weights for each token (the steps ``skip`` and ``moefy``)."""
    cpu_only: bool = False
    """Whether it has no kernels for GPUs."""
    package: str = ""
    """A package that the engine needs beside the program's own; its version is part of its cells' ids."""
    fast_with: tuple[str, ...] = ()
    """Instruction sets of the CPU, as the system names them, without which its kernels are ``slower``."""
    slower: str = ""
    """By how much, in words."""
    version: int = 0
    """Raise it when the engine's own code changes what is measured: only this engine's cells are then measured anew."""


FLOAT_AND_INTEGERS = ("float", "int8", "int4")
BUILT_IN = (
    EngineInfo(
        "deepspeed",
        "sparsebench.runtime.engines.deepspeed:DeepSpeed",
        shards=True,
        cuts_first=True,
        encodings=FLOAT_AND_INTEGERS,
    ),
    EngineInfo("deepspeed-zero3", "sparsebench.runtime.engines.zero3:Zero3", shards=True, offloads=True),
    EngineInfo("hf", "sparsebench.runtime.engines.hf:HuggingFace", encodings=FLOAT_AND_INTEGERS, skips_weights=True),
    EngineInfo(
        "llamacpp",
        "sparsebench.runtime.engines.llamacpp:LlamaCpp",
        encodings=("float", "gguf"),
        cpu_only=True,
        package="xllamacpp",
    ),
    EngineInfo("skip", "sparsebench.runtime.engines.skip:SkipEngine", skips_weights=True, cpu_only=True, version=2),
    EngineInfo(
        "sparse",
        "sparsebench.runtime.engines.sparse:Sparse",
        encodings=FLOAT_AND_INTEGERS,
        skips_zeros=True,
        reads_packed=True,
        fast_with=("avx512_vbmi2", "avx512_vnni"),
        slower="a token through layers with zeros takes 3.5 to 7.5 times as long, which is more than by torch's dense layers",
        version=7,
    ),
)


@cache
def engines() -> dict[str, EngineInfo]:
    """Return every engine by name: the built-in ones, then those of installed plugins."""
    return table(BUILT_IN, EngineInfo, "sparsebench.engines")


def engine_info(name: str) -> EngineInfo:
    """Return the row of the engine ``name``. Raises MeasureError for a name that does not exist."""
    if name not in engines():
        raise MeasureError(f"no engine {name!r}", f"engines are {', '.join(engines())}")
    return engines()[name]


def engine(name: str) -> Any:
    """Make the engine ``name``, a ``base.Engine``, importing only its own module.

    Raises MeasureError for a name that does not exist.
    """
    return resolve_name(engine_info(name).import_path)()
