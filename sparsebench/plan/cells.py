"""The terms of a run: variant, cell, job. Frozen, hashable by content, safe to send to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sparsebench import processor
from sparsebench.manifest.schema import is_nm
from sparsebench.steps import registry
from sparsebench.steps.contract import Step
from sparsebench.steps.floor import HEURISTIC

NOT_PRUNED: dict[str, Any] = {
    "granularity": "",
    "pattern": "unstructured",
    "sparsity": 0.0,
    "allocation": "uniform",
    "propagate": "",
}


@dataclass(frozen=True)
class Variant:
    """A model after a recipe: the ``steps`` that lead to it from the dense checkpoint; the dense variant has none.

    ``id`` is the content fingerprint: the same id means the same weights. ``parents`` are the ids of the variants that
    it was made from, the dense one first. ``calibration`` describes the text that its steps read, in one line.
    """

    id: str
    model: str
    family: str
    source: str
    revision: str
    weights: str
    dtype: str
    seed: int = 0
    calibration: str = ""
    steps: tuple[Step, ...] = ()
    parents: tuple[str, ...] = ()

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Variant:
        """Return a variant from a record's mapping, which has more keys than the variant needs."""
        arguments = {column.name: record[column.name] for column in fields(cls) if column.name in record}
        steps = tuple(map(registry.recorded, arguments.get("steps", ())))
        return cls(**{**arguments, "steps": steps, "parents": tuple(arguments.get("parents", ()))})

    def record(self) -> dict[str, Any]:
        """Return the variant as records and the ledger hold it.

        It adds the settings of the last pruning step, and in words what else was done.
        """
        record = {column.name: getattr(self, column.name) for column in fields(self)}
        record |= {"steps": [step.record() for step in self.steps]}
        record |= {key: self.pruning_setting(key) for key in registry.COLUMNS} | {"sparsity": self.sparsity}
        return {**record, "method": self.method, "recipe": self.recipe, "beside": self._beside}

    def folder(self, work: Path) -> Path:
        """Return the path of its Hugging Face folder in a work folder."""
        return work / ("models" if self.is_dense else "variants") / self.id

    @property
    def is_dense(self) -> bool:
        """Whether nothing has been done to it."""
        return not self.steps

    @property
    def label(self) -> str:
        """The name for people: ``smollm2 magnitude/layer 50%``."""
        return f"{self.model} {self.recipe}"

    @property
    def recipe(self) -> str:
        """Its steps in words: ``sparsegpt/layer 50%, then int8``; ``dense`` without any."""
        return ", then ".join(map(registry.label, self.steps)) or "dense"

    @property
    def method(self) -> str:
        """The name in tables: that of ``named_step``, else ``dense``."""
        return self.named_step.name if self.named_step else "dense"

    @property
    def named_step(self) -> Step | None:
        """The step whose name stands for the variant in tables: its last pruning step, else its last step."""
        return self.steps[self._named_index] if self.steps else None

    @property
    def heuristic(self) -> bool:
        """Whether its scores come from a rule that reads no model."""
        return bool(self.steps) and (self.steps[-1].verb, self.steps[-1].name) == ("floor", HEURISTIC)

    @property
    def encoding(self) -> str:
        """The number format that quantizing gave its weights last, such as ``int8``; empty where they are floats."""
        return next((step.name for step in reversed(self.steps) if step.verb == "quantize"), "")

    @property
    def sparsity(self) -> float | None:
        """The share of the prunable weights that was asked to be zero; None where no setting says it, as for masks.

        The last pruning step gives it. A step that keeps earlier zeros adds its share of the weights that are left.
        """
        share: float | None = 0.0
        for step in (step for step in self.steps if step.verb == "prune"):
            settings = step.settings.record()
            step_share: float | None = settings.get("sparsity")
            pattern = settings.get("pattern", NOT_PRUNED["pattern"])
            if share == 0 or not settings.get("keep_zeros"):
                share = step_share
            elif share is None or step_share is None or is_nm(pattern):
                share = None
            else:
                share = round(1 - (1 - share) * (1 - step_share), 12)
        return share

    def values(self, key: str) -> list[Any]:
        """Return the values of the field ``key`` in its steps, or the names of its steps of the verb ``key``."""
        step_names = [step.name for step in self.steps if step.verb == key]
        settings = [step.settings.record() for step in self.steps]
        return step_names + [record[key] for record in settings if key in record]

    def pruning_setting(self, key: str) -> Any:
        """Return a setting of its last pruning step (one of ``registry.COLUMNS``); without one, that of NOT_PRUNED."""
        prunings = [step for step in self.steps if step.verb == "prune"]
        settings = prunings[-1].settings.record() if prunings else NOT_PRUNED
        return settings.get(key, NOT_PRUNED[key])

    @property
    def _named_index(self) -> int:
        """The index of ``named_step``."""
        prunings = [index for index, step in enumerate(self.steps) if step.verb == "prune"]
        return prunings[-1] if prunings else len(self.steps) - 1

    @property
    def _beside(self) -> str:
        """What was done beyond the settings in ``record``, as text to follow the method in a label."""
        if not self.steps:
            return ""
        index = self._named_index
        before = [f"after {registry.label(step)}" for step in self.steps[:index]]
        after = [f"then {registry.label(step)}" for step in self.steps[index + 1 :]]
        return ", ".join([*registry.details(self.steps[index]), *before, *after])


@dataclass(frozen=True)
class Cell:
    """The unit of record and of resume: one variant × its making, or one task, runtime setting, structure or storage.

    ``stage`` is ``make`` or one of ``stages``. ``settings`` holds everything that was asked and can change the result.
    ``id`` is the fingerprint of the settings, the variant, the stage's VERSION and libraries, and the version of the
    task, the engine or the measuring of memory. It does not depend on the machine: what ``auto`` became there is on the
    record. ``documents`` is about how many documents the user's own data have, for the estimate (0: unknown).
    """

    id: str
    stage: str
    variant: Variant
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    documents: int = field(default=0, compare=False)

    @property
    def nodes(self) -> int:
        """On how many nodes of a cluster its ranks are; 0 where they stay with the job."""
        return int(self.settings.get("nodes", 0))

    def compute_dtype(self, device: str) -> str:
        """Return the precision that it will run in on this machine: the one asked for, where that is not ``auto``."""
        requested = self.settings["dtype"] if "engine" in self.settings else self.settings.get("compute_dtype", "auto")
        return processor.compute_dtype(self.variant.dtype, requested, device)

    @property
    def label(self) -> str:
        """What the cell measures, in a few words."""
        settings = self.settings
        if "task" in settings:
            limit = f" ({settings['limit']} drawn)" if settings.get("limit") else ""
            return f"{settings['task']}{limit}"
        if "engine" in settings:
            workload = settings["workload"]
            shape = f"b{workload['batch']} p{workload['prompt']} g{workload['generate']}"
            where = f" on {self.nodes} nodes" if self.nodes else ""
            sharing = " beside other jobs" if settings.get("alone") == "device" else ""
            forced = " by its own kernels" if settings.get("forced") else ""
            return f"{self.stage} {settings['engine']} ×{settings['ranks']}{where} {shape}{forced}{sharing}"
        return self.stage


@dataclass(frozen=True)
class Job:
    """The unit of execution: cells that share one process because they share what is expensive.

    ``kind`` names one of ``stages.JOB_KINDS``. ``makes`` are the variants whose folders the job leaves behind, and
    ``parent`` is the one that they are made from. ``after`` are the ids of jobs that must have ended before it starts.
    ``repeated`` are ``make`` cells that are recorded already and done again because a folder is gone: for the estimate.
    """

    id: str
    kind: str
    cells: tuple[Cell, ...]
    makes: tuple[Variant, ...] = ()
    parent: Variant | None = None
    after: tuple[str, ...] = ()
    repeated: tuple[Cell, ...] = ()

    @property
    def making_cells(self) -> tuple[Cell, ...]:
        """The cells that it records and those that it only makes again."""
        return (*self.cells, *self.repeated)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that it makes or works on, each once, in order."""
        variants = [*self.makes, *(cell.variant for cell in self.cells)]
        return tuple({variant.id: variant for variant in variants}.values())

    @property
    def label(self) -> str:
        """The text shown while it runs: ``make  smollm2 wanda/layer 50% and 3 more``."""
        first, *others = self.variants
        return f"{self.kind}  {first.label}{f' and {len(others)} more' if others else ''}"
