"""The words of a run: variant, cell, job. Frozen, hashable by content, safe to send to another process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["sparsify", "structure", "storage", "latency", "memory", "benchmarks"]
STAGES: tuple[Stage, ...] = ("sparsify", "structure", "storage", "benchmarks", "latency", "memory")
TIMED: tuple[Stage, ...] = ("latency", "memory")
"""Stages whose jobs have the machine to themselves."""


@dataclass(frozen=True)
class Variant:
    """A model after one method at one sparsity; ``dense`` is method ``dense`` at sparsity 0.

    ``id`` is the content fingerprint: the same id means the same weights.
    """

    id: str
    model: str
    family: str
    source: str
    revision: str
    weights: str
    dtype: str
    method: str = "dense"
    granularity: str = ""
    pattern: str = "unstructured"
    sparsity: float = 0.0
    seed: int = 0
    calibration: str = ""
    allocation: str = "uniform"
    propagate: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether nothing has been removed from it."""
        return self.method == "dense"

    @property
    def label(self) -> str:
        """How a person reads it: ``smollm2 magnitude/layer 50%``."""
        if self.is_dense:
            return f"{self.model} dense"
        pattern = "" if self.pattern == "unstructured" else f" {self.pattern}"
        return f"{self.model} {self.recipe}{pattern} {self.sparsity:.0%}"

    @property
    def recipe(self) -> str:
        """The method with what modifies it: ``wanda+owl/row``."""
        method = self.method if self.allocation == "uniform" else f"{self.method}+{self.allocation}"
        return "/".join(word for word in (method, self.granularity) if word)


@dataclass(frozen=True)
class Cell:
    """The unit of record and of resume: one variant × one task, runtime setting, structure or storage.

    ``settings`` holds everything, resolved, that can change the result; ``id`` is its fingerprint
    together with the variant, the stage's VERSION and its libraries, and versions of the task, the engine or of measuring memory.
    """

    id: str
    stage: Stage
    variant: Variant
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """What the cell measures, in a few words."""
        setting = self.settings
        if self.stage == "benchmarks":
            limit = f" (first {setting['limit']})" if setting.get("limit") else ""
            return f"{setting['task']}{limit}"
        if self.stage in TIMED:
            load = setting["workload"]
            shape = f"b{load['batch']} p{load['prompt']} g{load['generate']}"
            nodes = len(setting.get("hosts", ()))
            where = f" on {nodes} node{'s' * (nodes > 1)}" if nodes else ""
            return f"{self.stage} {setting['engine']} ×{setting['ranks']}{where} {shape}"
        return self.stage


@dataclass(frozen=True)
class Job:
    """The unit of execution: cells that share one process because they share what is expensive.

    ``kind`` is prepare, make, assess (structure and storage), benchmarks, latency or memory. ``makes`` are the
    variants whose folders the job leaves behind, ``after`` the jobs that must have ended well before it starts,
    ``exclusive`` means alone on the machine.
    """

    id: str
    kind: str
    cells: tuple[Cell, ...]
    makes: tuple[Variant, ...] = ()
    after: tuple[str, ...] = ()
    exclusive: bool = False

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that it makes or works on, each once, in order."""
        found = [*self.makes, *(cell.variant for cell in self.cells)]
        return tuple({variant.id: variant for variant in found}.values())

    @property
    def label(self) -> str:
        """What a person reads while it runs."""
        first = self.variants[0]
        if self.kind in ("benchmarks", "memory"):
            return f"{self.kind}  {first.label}"
        many = f" ({len(self.variants)} variants)" if len(self.variants) > 1 else ""
        recipes = ", ".join(dict.fromkeys(variant.recipe for variant in self.variants))
        return f"{self.kind}  {first.model} {recipes}{many}"
