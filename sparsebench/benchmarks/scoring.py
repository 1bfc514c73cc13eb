"""Scoring one model on a list of tasks. A task that fails reports an error, and the others are still scored."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sparsebench import bounded, sources
from sparsebench.benchmarks.catalog import all_tasks
from sparsebench.benchmarks.contract import EmitScore, Progress, ScoredModel, ScoreResult, TaskSpec
from sparsebench.benchmarks.heads import fitting_tasks, missing_head
from sparsebench.benchmarks.overlap import FittedTexts, copied
from sparsebench.errors import BenchmarkError, SparsebenchError, library_errors
from sparsebench.manifest.names import Family
from sparsebench.models.shape.topology import refuse_text

PROTOCOL_KEYS = ("num_fewshot", "divergence", "batch")
"""The settings of how a task is scored that not every adapter takes."""
_TAKEN_BY = {"data": ("pairs",), "num_fewshot": ("harness",), "divergence": ("perplexity",)}
"""The adapters whose tasks take a setting. All take ``batch`` but a perplexity, which chooses its own batches."""


def takes(adapter: str, key: str) -> bool:
    """Return whether the tasks of an adapter take a setting."""
    return adapter != "perplexity" if key == "batch" else adapter in _TAKEN_BY[key]


def check(spec: TaskSpec, family: Family) -> None:
    """Check that the task is for the family and takes the settings given, without reading any data.

    Raises BenchmarkError naming the task and what it does not take.
    """
    if family not in spec.families:
        alternatives = ", ".join(name for name, other in all_tasks().items() if family in other.families)
        raise BenchmarkError(
            f"task {spec.task} is for {' and '.join(spec.families)} models, not for family {family}",
            f"for {family}: {alternatives}",
        )
    for key in ("data", *PROTOCOL_KEYS):
        if getattr(spec, key) and not takes(spec.adapter, key):
            raise BenchmarkError(f"task {spec.task} takes no `{key}`", f"remove `{key}`")


def score(
    model: ScoredModel,
    tasks: Sequence[TaskSpec],
    cache: sources.Cache,
    emit: EmitScore,
    progress: Progress | None = None,
    fitted: FittedTexts | None = None,
) -> None:
    """Score the model on every task; ``emit`` gets each result or error as it comes.

    Tasks without a ``batch`` are scored the family's fastest way. With one, lm-eval uses its own batches of that many
    sequences, and the numbers are stock's to the bit. The model is loaded once for each different ``batch``.

    On a GPU batches fill its memory. A task whose documents occur in the text that the model was ``fitted`` to gets an
    error, or a score that says so if that is allowed. Raises ModelError when the model itself cannot be loaded,
    UnsupportedError when it reads no text.
    """
    config = bounded.read_object(model.folder / "config.json")
    refuse_text(config)
    scorable: list[TaskSpec] = []
    for spec in tasks:
        try:
            check(spec, model.family)
            if missing := missing_head(spec.adapter, config, model.family):
                raise BenchmarkError(
                    f"task {spec.task} needs {missing}; {model.folder.name} is {config.get('architectures')}",
                    f"for this model: {', '.join(fitting_tasks(config, model.family))}",
                )
            scorable.append(spec)
        except BenchmarkError as error:
            emit(spec, error)
    import torch

    from sparsebench.benchmarks.scorers import load_scorers, repeatability

    for batch_size in dict.fromkeys(spec.batch for spec in scorable):
        same_batch = [spec for spec in scorable if spec.batch == batch_size]
        scorers = load_scorers(model, {spec.adapter for spec in same_batch}, batch_size, progress)
        repeats = repeatability(next(iter(scorers.values())).model)
        for spec in same_batch:
            # A run may have found free cores since the last task.
            conditions: dict[str, str | int] = {"repeats": repeats, "threads": torch.get_num_threads()}
            try:
                copies = _copies(spec, cache, fitted)
                with library_errors(
                    f"task {spec.task}", "correct what it names, or leave the task out", BenchmarkError
                ):
                    result = scorers[spec.adapter].score(spec, cache)
            except SparsebenchError as error:
                emit(spec, error)
            else:
                emit(spec, with_protocol(result, spec, copies | conditions))
        del scorers  # before the next batch size's model is loaded


def _copies(spec: TaskSpec, cache: sources.Cache, fitted: FittedTexts | None) -> dict[str, str | int]:
    """Return what a result records of copies of the task's documents in the text that the model was fitted to.

    Raises BenchmarkError for copies that are not allowed.
    """
    if fitted is None:
        return {}
    copies = copied(fitted, spec, cache)
    if copies is None:
        return {"calibration_copies": "looked for by the data set's name only"}
    if copies and not fitted.allowed:
        raise BenchmarkError(
            f"task {spec.task}: the calibration text holds {len(copies)} of its documents, word for word, such as "
            f"{textwrap.shorten(copies[0], 80)!r}",
            "name another `calibration: source`, or say `allow_overlap: true` there",
        )
    return {"calibration_copies": len(copies)}


def with_protocol(result: ScoreResult, spec: TaskSpec, extra: Mapping[str, str | int] | None = None) -> ScoreResult:
    """Add to a result's protocol ``extra``, the user's data source, and one hash of all prompts, their ids and order."""
    data = {"data": spec.own.label, "data_content": spec.own.content} if spec.own else {}
    prompts = "\n".join(f"{outcome.doc_id} {outcome.doc_hash}" for outcome in result.outcomes)
    digest = {"prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest()}
    return replace(result, protocol={**result.protocol, **(extra or {}), **data, **digest})
