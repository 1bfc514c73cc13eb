"""Benchmarks of other packages: their own function scores the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sparsebench import sources
from sparsebench.benchmarks.contract import Progress, ScoreResult, TaskSpec
from sparsebench.errors import BenchmarkError, SparsebenchError

Function = Callable[..., ScoreResult]
"""``(model, tokenizer, task, spec, cache, progress)``: the loaded model in evaluation mode (of an encoder without its head), the
row of the table, what the manifest asks for, where sources are fetched to, and whom to tell (done, of)."""


@dataclass(frozen=True)
class Plugged:
    """One loaded model, for the functions that adapters name as ``module:function``."""

    model: Any
    tokenizer: Any
    progress: Progress | None = None

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score one task. Raises BenchmarkError for whatever goes wrong in the plugin, and for what is no result."""
        task = spec.known
        module, _, name = task.adapter.partition(":")
        told = self.progress or (lambda done, total: None)
        try:
            function: Function = getattr(import_module(module), name)
            found = function(self.model, self.tokenizer, task, spec, cache, told)
        except SparsebenchError:
            raise
        except Exception as error:
            raise BenchmarkError(
                f"task {spec.task}: {task.adapter} raised {type(error).__name__}: {error}", "mend the plugin"
            ) from error
        if not isinstance(found, ScoreResult):
            raise BenchmarkError(
                f"task {spec.task}: {task.adapter} gave a {type(found).__name__}, not a ScoreResult", "mend the plugin"
            )
        return found
