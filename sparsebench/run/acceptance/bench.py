"""What the checks share: the device, models of random weights, and ways to measure them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench import devices
from sparsebench.errors import SparsebenchError
from sparsebench.run.acceptance.models import TINY, TRUE
from sparsebench.runtime import LatencyResult, MemoryResult, Setting, Workload, measure_memory, measure_pair

GIB = 2**30
CheckResult = tuple[bool | None, str, dict[str, Any]]
"""Whether a check passed (None: nothing to judge by), what was seen, and the numbers."""


class CheckSkipped(Exception):
    """The check means nothing here; the message says why."""


@dataclass(frozen=True)
class Bench:
    """The device, how many ranks there may be, and a folder for models."""

    device: str
    ranks: int
    folder: Path

    @property
    def gpu(self) -> bool:
        """Whether a GPU is examined."""
        return devices.is_gpu(self.device)

    @property
    def dtype(self) -> str:
        """The precision that models are measured in."""
        return "bfloat16" if self.gpu else "float32"

    @property
    def several(self) -> list[int]:
        """The numbers of ranks that can share a model. Raises CheckSkipped where there is only one rank."""
        found = [ranks for ranks in (2, 4, 8) if ranks <= self.ranks]
        if not found:
            raise CheckSkipped(f"{self.ranks} rank: the check needs two")
        return found

    def model(self, name: str) -> tuple[Path, Any]:
        """Return a model of random weights, made when first asked for, and its family."""
        from sparsebench.models.random_weights import write_random

        shape = (TRUE if self.gpu else TINY)[name]
        folder = self.folder / name
        if not folder.is_dir():
            write_random(shape.config, folder, shape.family, self.dtype)
        return folder, shape.family

    def setting(self, engine: str, ranks: int = 1, **more: Any) -> Setting:
        """Return how to measure on the device: briefly, unless ``more`` says otherwise."""
        usual: dict[str, Any] = {"workload": Workload(1, 32, 4), "samples": 4, "processes": 1, "phase_seconds": 1.0}
        return Setting(engine, ranks, **usual | {"dtype": self.dtype, "device": self.device} | more)

    def memory(self, name: str, engine: str, ranks: int = 1, folder: Path | None = None) -> MemoryResult:
        """Measure the memory of a model; this also checks parity and runs a decode with a cache."""
        own, family = self.model(name)
        return measure_memory(folder or own, family, self.setting(engine, ranks))

    def latency(self, variant: Path, name: str, engine: str, **more: Any) -> LatencyResult:
        """Time a variant against the model."""
        folder, family = self.model(name)
        return measure_pair(folder, variant, family, self.setting(engine, **more))

    def pruned(self, name: str, pattern: str, sparsity: float) -> Path:
        """Prune the model by magnitude and return its folder."""
        from sparsebench.steps.contract import Context
        from sparsebench.steps.registry import kinds, single

        folder, family = self.model(name)
        out = self.folder / f"{name}-{pattern.replace(':', 'of')}"
        step = single("prune", "magnitude", **({"pattern": pattern} if ":" in pattern else {"sparsity": sparsity}))

        def emit(_: Any, found: Any) -> None:
            if isinstance(found, SparsebenchError):
                raise found

        kinds()["prune"].load()(folder, {step: out}, Context(family), emit)
        return out


def off(found: MemoryResult | LatencyResult) -> float:
    """Return the relative L2 distance from the plain model's output; infinity where nothing was compared."""
    return found.parity.relative_l2 if found.parity else math.inf
