"""Scoring one model on a list of tasks. A task that fails reports an error, and the others are still scored."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sparsebench import bounded, sources
from sparsebench.benchmarks.catalog import all_tasks
from sparsebench.benchmarks.contract import Emit, Progress, ScoreResult, TaskSpec
from sparsebench.benchmarks.overlap import Fitted, copied
from sparsebench.errors import BenchmarkError, SparsebenchError
from sparsebench.models.files.text import longest_input, original_ids
from sparsebench.models.shape.topology import refuse_text

if TYPE_CHECKING:
    import torch

    from sparsebench.benchmarks.encoder import Encoder
    from sparsebench.benchmarks.generation import Generation
    from sparsebench.benchmarks.harness import Harness
    from sparsebench.benchmarks.perplexity import Perplexity
    from sparsebench.benchmarks.plugged import Plugged
    from sparsebench.manifest.schema import Family

    Scorer: TypeAlias = Encoder | Generation | Harness | Perplexity | Plugged

SEQUENCES, TOKENS = 8, 32
"""Size of the batch that is computed twice: it gives every thread work, and takes a second for a billion parameters."""


def check(spec: TaskSpec, family: Family) -> None:
    """Check that the task is for the family and takes the settings given, without reading any data.

    Raises BenchmarkError naming the task and what it does not take.
    """
    fitting, adapter = spec.families, spec.adapter
    if family not in fitting:
        fit = ", ".join(name for name, other in all_tasks().items() if family in other.families)
        raise BenchmarkError(
            f"task {spec.task} is for {' and '.join(fitting)} models, not for family {family}", f"for {family}: {fit}"
        )
    if spec.data and adapter != "pairs":
        fit = ", ".join(name for name, task in all_tasks().items() if task.adapter == "pairs")
        raise BenchmarkError(f"task {spec.task} does not accept `data`", f"remove `data`; tasks that accept it: {fit}")
    if spec.num_fewshot and adapter != "harness":
        raise BenchmarkError(f"task {spec.task} takes no examples in its prompt", "remove `num_fewshot`")
    if spec.batch and adapter == "perplexity":
        raise BenchmarkError(f"task {spec.task} chooses itself how many windows it reads at once", "remove `batch`")


def score(
    folder: Path,
    family: Family,
    tasks: Sequence[TaskSpec],
    cache: sources.Cache,
    emit: Emit,
    progress: Progress | None = None,
    dtype: str = "auto",
    fitted: Fitted | None = None,
    device: str = "cpu",
) -> None:
    """Score the model in ``folder`` on every task, loading it once; ``emit`` gets each result or error as it comes.

    Tasks without a ``batch`` are scored the family's fastest way. With one, lm-eval uses its own batches of that many
    sequences, and the numbers are stock's to the bit. The model is loaded once for each different ``batch``.

    The model computes in ``dtype`` (``auto``: the checkpoint's) on ``device``; on a GPU, in batches that fill its
    memory. A task whose documents occur in the text that the model was ``fitted`` to gets an error, or a score that says
    so if that is allowed. Raises ModelError when the model itself cannot be loaded, UnsupportedError when it reads no
    text.
    """
    refuse_text(bounded.read_object(folder / "config.json"))
    fit: list[TaskSpec] = []
    for spec in tasks:
        try:
            check(spec, family)
            fit.append(spec)
        except BenchmarkError as error:
            emit(spec, error)
    import torch

    for size in dict.fromkeys(spec.batch for spec in fit):
        alike = [spec for spec in fit if spec.batch == size]
        scorers = _load(folder, family, {spec.adapter for spec in alike}, size, progress, dtype, device)
        machine: dict[str, str | int] = {
            "threads": torch.get_num_threads(),
            "repeats": repeats(next(iter(scorers.values())).model),
        }
        for spec in alike:
            try:
                copies = _copies(spec, cache, fitted)
                result = scorers[spec.adapter].score(spec, cache)
            except SparsebenchError as error:
                emit(spec, error)
            else:
                emit(spec, noted(result, spec, copies | machine))
        del scorers  # before the next batch size's model is loaded


def _copies(spec: TaskSpec, cache: sources.Cache, fitted: Fitted | None) -> dict[str, str | int]:
    """Return what a result records of copies of the task's documents in the text that the model was fitted to.

    Raises BenchmarkError for copies that are not allowed.
    """
    if fitted is None:
        return {}
    found = copied(fitted, spec, cache)
    if found is None:
        return {"calibration_copies": "looked for by the data set's name only"}
    if found and not fitted.allowed:
        raise BenchmarkError(
            f"task {spec.task}: the calibration text holds {len(found)} of its documents, word for word, such as "
            f"{textwrap.shorten(found[0], 80)!r}",
            "name another `calibration: source`, or say `allow_overlap: true` there",
        )
    return {"calibration_copies": len(found)}


def noted(result: ScoreResult, spec: TaskSpec, more: Mapping[str, str | int] | None = None) -> ScoreResult:
    """Add to a result's protocol ``more``, the user's data source, and one hash of all prompts, their ids and order."""
    theirs = {"data": spec.own.label, "data_content": spec.own.content} if spec.own else {}
    shown = "\n".join(f"{outcome.doc_id} {outcome.doc_hash}" for outcome in result.outcomes)
    prompts = {"prompts_sha256": hashlib.sha256(shown.encode()).hexdigest()}
    return replace(result, protocol={**result.protocol, **(more or {}), **theirs, **prompts})


def _load(
    folder: Path,
    family: Family,
    adapters: set[str],
    batch_size: int | None,
    progress: Progress | None,
    dtype: str,
    device: str,
) -> dict[str, Scorer]:
    """Return the scorer for each adapter's tasks, all around one loaded model."""
    if family == "encoder":
        from sparsebench.benchmarks.encoder import Encoder

        return dict.fromkeys(adapters, Encoder(folder, batch_size, progress, dtype, device))
    scorers: dict[str, Scorer] = {}
    model = None
    if "harness" in adapters:
        from sparsebench.benchmarks.harness import Harness

        scorers["harness"] = harness = Harness(folder, family, batch_size, progress, dtype=dtype, device=device)
        model = harness.model
    if "perplexity" in adapters:
        from sparsebench.benchmarks.perplexity import Perplexity
        from sparsebench.models.files.text import load_tokenizer
        from sparsebench.models.modules.load import load_model

        # No import of lm-eval, and a tokenizer that lm-eval has not modified.
        model = model or load_model(folder, family, dtype, device)
        scorers["perplexity"] = Perplexity(model, load_tokenizer(folder), progress, original_ids(folder))
    if "generation" in adapters:
        from sparsebench.benchmarks.generation import Generation
        from sparsebench.models.files.text import load_tokenizer
        from sparsebench.models.modules.load import load_model

        model = model or load_model(folder, family, dtype, device)
        scorers["generation"] = Generation(model, load_tokenizer(folder), batch_size, progress)
    if theirs := [adapter for adapter in adapters if ":" in adapter]:
        from sparsebench.benchmarks.plugged import Plugged
        from sparsebench.models.files.text import load_tokenizer
        from sparsebench.models.modules.load import load_model

        model = model or load_model(folder, family, dtype, device)
        scorers |= dict.fromkeys(theirs, Plugged(model, load_tokenizer(folder), progress))
    return scorers


def repeats(model: Any) -> str:
    """Compute one batch twice and return ``to the bit``, or by how much the two differ.

    This reveals sums in a varying order: threads that share the work differently, or a kernel that is chosen anew.
    """
    import torch

    length = min(TOKENS, longest_input(model.config.to_dict()) or TOKENS)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(SEQUENCES * length, device=model.device) % vocabulary).reshape(SEQUENCES, length)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        with torch.inference_mode():
            one, other = (_first(model(**inputs)) for _ in range(2))
    except (RuntimeError, ValueError, TypeError) as error:  # scoring the tasks will report what is wrong with the model
        return f"not tried: {type(error).__name__}"
    if torch.equal(one, other):
        return "to the bit"
    return f"no: the same batch twice differs by up to {float((one - other).abs().max()):.1e}"


def _first(output: Any) -> torch.Tensor:
    """Return the logits or hidden states of a model's output, with NaN (from a damaged model) as zero."""
    found: torch.Tensor = next(iter(output.values()))
    return found.float().nan_to_num()
