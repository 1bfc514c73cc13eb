"""One loaded model, and what scores it on tasks. Imported only to score: torch is heavy."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch

from sparsebench import bounded, sources
from sparsebench.benchmarks.contract import Progress, ScoredModel, ScoreResult, TaskSpec
from sparsebench.benchmarks.encoder import Encoder, Plugged
from sparsebench.benchmarks.generation import Generation
from sparsebench.benchmarks.perplexity import Perplexity
from sparsebench.models.files.families import output_family
from sparsebench.models.files.text import load_tokenizer, longest_input, original_ids
from sparsebench.models.modules.load import load_model

REPEATED_SEQUENCES, REPEATED_TOKENS = 8, 32
"""Size of the batch that is computed twice: it gives every thread work, and takes a second for a billion parameters."""


class Scorer(Protocol):
    """One loaded model, for the tasks of an adapter."""

    @property
    def model(self) -> Any:
        """The model."""

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score one task. Raises BenchmarkError where it fails."""


def load_scorers(
    model_info: ScoredModel, adapters: set[str], batch_size: int | None, progress: Progress | None
) -> dict[str, Scorer]:
    """Return the scorer for each adapter's tasks, all around one loaded model."""
    folder, family, dtype, device = model_info.folder, model_info.family, model_info.dtype, model_info.device
    if output_family(family, bounded.read_object(folder / "config.json")) == "encoder":
        return dict.fromkeys(adapters, Encoder(folder, batch_size, progress, dtype, device))
    scorers: dict[str, Scorer] = {}
    model = load_model(folder, family, dtype, device)
    for adapter in adapters:
        if adapter == "harness":
            from sparsebench.benchmarks.harness import Harness  # lm-eval takes seconds to import

            scorers[adapter] = Harness(folder, family, batch_size, progress, model)
            continue
        tokenizer = load_tokenizer(folder)  # for each its own: lm-eval modifies the one that it is given
        if adapter == "perplexity":
            load_dense = partial(load_model, model_info.dense, family, dtype, device) if model_info.dense else None
            scorers[adapter] = Perplexity(model, tokenizer, progress, original_ids(folder), load_dense)
        elif adapter == "generation":
            scorers[adapter] = Generation(model, tokenizer, batch_size, progress)
        else:
            scorers[adapter] = Plugged(model, tokenizer, progress)
    return scorers


def repeatability(model: Any) -> str:
    """Compute one batch twice and return ``to the bit``, or by how much the two differ.

    This reveals sums in a varying order: threads that share the work differently, or a kernel that is chosen anew.
    """
    length = min(REPEATED_TOKENS, longest_input(model.config.to_dict()) or REPEATED_TOKENS)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(REPEATED_SEQUENCES * length, device=model.device) % vocabulary).reshape(
        REPEATED_SEQUENCES, length
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        with torch.inference_mode():
            first, second = (_first_output(model(**inputs)) for _ in range(2))
    except (RuntimeError, ValueError, TypeError) as error:  # scoring the tasks will report what is wrong with the model
        return f"not tried: {type(error).__name__}"
    if torch.equal(first, second):
        return "to the bit"
    return f"no: the same batch twice differs by up to {float((first - second).abs().max()):.1e}"


def _first_output(output: Any) -> torch.Tensor:
    """Return the logits or hidden states of a model's output, with NaN (from a damaged model) as zero."""
    values: torch.Tensor = next(iter(output.values()))
    return values.float().nan_to_num()
