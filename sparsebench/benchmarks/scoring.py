"""One model, a list of tasks: each is scored or says why not, and the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench import sources
from sparsebench.benchmarks.catalog import TASKS
from sparsebench.benchmarks.contract import Emit, Progress, TaskSpec
from sparsebench.errors import BenchmarkError, SparsebenchError

if TYPE_CHECKING:
    from sparsebench.benchmarks.encoder import Encoder
    from sparsebench.benchmarks.harness import Harness
    from sparsebench.manifest.schema import Family


def check(spec: TaskSpec, family: Family) -> None:
    """Whether the task exists for the family, by its name alone. Raises BenchmarkError naming both."""
    task = TASKS.get(spec.task)
    families: tuple[str, ...] = task.families if task else ("decoder", "encoder-decoder")
    if family not in families:
        fit = ", ".join(name for name, other in TASKS.items() if family in other.families)
        raise BenchmarkError(
            f"task {spec.task} is for {' and '.join(families)} models, not for family {family}", f"for {family}: {fit}"
        )
    if family == "encoder" and spec.num_fewshot:
        raise BenchmarkError(f"task {spec.task}: an encoder takes no examples", "remove `num_fewshot`")


def score(
    folder: Path,
    family: Family,
    tasks: Sequence[TaskSpec],
    cache: sources.Cache,
    emit: Emit,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Score the model in ``folder`` on every task, loading it once; ``emit`` gets each result or error as it comes.

    ``batch_size`` is in sequences; the default is the family's fastest on two cores. Raises ModelError when the
    model itself cannot be loaded.
    """
    fit: list[TaskSpec] = []
    for spec in tasks:
        try:
            check(spec, family)
            fit.append(spec)
        except BenchmarkError as error:
            emit(spec, error)
    if not fit:
        return
    model = _load(folder, family, batch_size, progress)
    for spec in fit:
        try:
            result = model.score(spec, cache)
        except SparsebenchError as error:
            emit(spec, error)
        else:
            emit(spec, result)


def _load(folder: Path, family: Family, batch_size: int | None, progress: Progress | None) -> Encoder | Harness:
    if family == "encoder":
        from sparsebench.benchmarks.encoder import Encoder

        return Encoder(folder, batch_size, progress)
    from sparsebench.benchmarks.harness import Harness

    return Harness(folder, family, batch_size, progress)
