"""Benchmarks of other packages: a function of theirs scores the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sparsebench import sources
from sparsebench.benchmarks.contract import Progress, ScoreResult, TaskSpec
from sparsebench.errors import BenchmarkError, SparsebenchError

Function = Callable[..., ScoreResult]
"""A function of ``(model, tokenizer, task, spec, cache, progress)``.

The model is loaded and in evaluation mode: with its classification head if it has one, an encoder without any other
head. ``task`` is the row of the table, ``spec`` the
settings from the manifest. Sources are fetched into ``cache``; ``progress`` is to be called with (done, total).
"""


@dataclass(frozen=True)
class Plugged:
    """One loaded model, for the functions that adapters name as ``module:function``."""

    model: Any
    tokenizer: Any
    progress: Progress | None = None

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score one task. Raises BenchmarkError for any error in the plugin, and for anything but a ScoreResult."""
        task = spec.known
        module, _, name = task.adapter.partition(":")
        progress = self.progress or (lambda done, total: None)
        try:
            function: Function = getattr(import_module(module), name)
            result = function(self.model, self.tokenizer, task, spec, cache, progress)
        except SparsebenchError:
            raise
        except Exception as error:
            raise BenchmarkError(
                f"task {spec.task}: {task.adapter} raised {type(error).__name__}: {error}", "mend the plugin"
            ) from error
        if not isinstance(result, ScoreResult):
            raise BenchmarkError(
                f"task {spec.task}: {task.adapter} gave a {type(result).__name__}, not a ScoreResult", "mend the plugin"
            )
        return result
