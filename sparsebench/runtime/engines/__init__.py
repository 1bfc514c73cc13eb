"""The table of engines. An engine is one file and one row here; third parties add a row by an entry point.

An entry point in the group ``sparsebench.engines`` names an ``EngineInfo``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Literal

from sparsebench.errors import MeasureError
from sparsebench.plugins import table
from sparsebench.runtime.engines.base import Engine


@dataclass(frozen=True)
class EngineInfo:
    """One engine: ``place`` is ``module:class``, imported when it is used; the rest must be known before that."""

    name: str
    place: str
    _: KW_ONLY
    shards: bool = False
    """Whether it runs at more than one rank."""
    cuts_first: bool = False
    """Whether several ranks cut bfloat16 weights before they widen them, so that only shares are widened."""
    offloads: bool = False
    """Whether parameters lie in main memory, whatever the device."""
    encodings: tuple[str, ...] = ("float",)
    """How the weights of what it runs may be stored: float, int8, int8-dynamic, int4; quantized ones at one rank."""
    skips_zeros: bool = False
    """Whether its kernels leave zeros out, so that sparsity can make it faster."""
    imports: tuple[str, ...] = ()
    """Modules that its ranks import before anything is loaded."""
    skipping: Literal["", "masked", "unread"] = ""
    """How it runs models that compute with some of their weights for each token (the steps ``skip`` and ``moefy``): not at all,
    with masks and dense arithmetic, or leaving the others unread."""
    cpu_only: bool = False
    """Whether it has no kernels for GPUs."""
    version: int = 0
    """Raised when the engine's own code changes what is measured: its cells, and no other engine's, are then measured anew."""

    @property
    def dense(self) -> bool:
        """Whether its kernels read every weight, so that neither zeros nor thresholds can make it faster."""
        return not self.skips_zeros and self.skipping != "unread"


DEEPSPEED = ("deepspeed",)
ALL = ("float", "int8", "int8-dynamic", "int4")
BUILT_IN = (
    EngineInfo(
        "deepspeed",
        "sparsebench.runtime.engines.deepspeed:DeepSpeed",
        shards=True,
        cuts_first=True,
        encodings=ALL,
        imports=DEEPSPEED,
    ),
    EngineInfo(
        "deepspeed-zero3", "sparsebench.runtime.engines.zero3:Zero3", shards=True, offloads=True, imports=DEEPSPEED
    ),
    EngineInfo("hf", "sparsebench.runtime.engines.hf:HuggingFace", encodings=ALL, skipping="masked"),
    EngineInfo("skip", "sparsebench.runtime.engines.skip:SkipEngine", skipping="unread", cpu_only=True, version=1),
    EngineInfo("sparse", "sparsebench.runtime.engines.sparse:Sparse", skips_zeros=True, version=1),
)


@cache
def engines() -> dict[str, EngineInfo]:
    """Every engine by name: the built-in ones, then those of installed plugins."""
    return table(BUILT_IN, EngineInfo, "sparsebench.engines")


def engine(name: str) -> Engine:
    """A new engine of that name; only its own module is imported. Raises MeasureError for one that does not exist."""
    if name not in engines():
        raise MeasureError(f"no engine {name!r}", f"engines are {', '.join(engines())}")
    made: Engine = resolve_name(engines()[name].place)()
    return made
