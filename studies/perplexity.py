"""The perplexity of a model's folder over any text, for the studies that compare ours with the reference's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sparsebench.benchmarks.own import WINDOW
from sparsebench.benchmarks.perplexity import window_losses, windows_of
from sparsebench.benchmarks.running_text import pooled_perplexity
from sparsebench.models.files.text import load_tokenizer, special_tokens, token_ids
from sparsebench.models.modules.load import load_model


def perplexity(
    folder: Path, text: str | Sequence[int], window: int = WINDOW, stride: int | None = None, limit: int | None = None
) -> tuple[float, list[float]]:
    """Return the perplexity of the model in ``folder`` over any text or token ids, and each window's own perplexity.

    ``stride`` is in text tokens and defaults to all that fit into a window. A smaller one makes windows overlap, and a
    window then scores only the tokens that the one before it did not. Only the first ``limit`` windows count. Raises
    BenchmarkError.
    """
    before: list[int] = []
    if isinstance(text, str):
        tokenizer = load_tokenizer(folder)
        before, text = special_tokens(tokenizer)[0], token_ids(tokenizer, text)
    every = windows_of(text, window, stride, before)
    part = every.selected(range(len(every.ids))[:limit])
    values = window_losses(load_model(folder, "decoder"), part)
    return pooled_perplexity(values, part.scored), [math.exp(v / n) for v, n in zip(values, part.scored, strict=True)]
