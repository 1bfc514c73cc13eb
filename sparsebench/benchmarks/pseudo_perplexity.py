"""Pseudo-perplexity of a masked language model: exp of the mean negative pseudo-log-likelihood of a token.

(Salazar et al. 2020, section 2.3; here with the correction within words.) A window is what the model sees at once: as
many whole words as fit. Each of its tokens is scored given the others.
"""

from __future__ import annotations

import math
from itertools import accumulate

from sparsebench import sources
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import ScoreResult, TaskSpec, drawn
from sparsebench.benchmarks.encoder import Encoder
from sparsebench.benchmarks.own import MASKED_WINDOW
from sparsebench.benchmarks.pll import PllScorer, PllText, PllTokenizer
from sparsebench.benchmarks.running_text import (
    RunningText,
    ScoredWindow,
    bits_per_byte,
    check_finite,
    perplexity_result,
    to_dense_ids,
    window_length,
)
from sparsebench.errors import BenchmarkError
from sparsebench.models.files.text import original_ids


def score(encoder: Encoder, task: Benchmark, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    """Score the task's passages; ``limit`` is in windows. Raises BenchmarkError when a likelihood is not finite."""
    running_text = RunningText.of(spec, cache)
    model = encoder.masked
    reader = PllTokenizer(encoder.tokenizer, model.config.to_dict())
    size = window_length(spec, reader.longest, MASKED_WINDOW)
    all_windows = windows(reader, running_text.text, size)
    numbers, drawn_windows = drawn(all_windows, spec.limit)
    scorer = PllScorer(model, encoder.tokenizer, encoder.requested_batch_size)
    answers = scorer.score(drawn_windows, encoder.progress)
    original = original_ids(encoder.folder)
    scored = [
        ScoredWindow(
            number, to_dense_ids(window.ids, original), -math.fsum(likelihood for likelihood, _ in answer), len(answer)
        )
        for number, window, answer in zip(numbers, drawn_windows, answers, strict=True)
    ]
    for window in scored:
        check_finite(task.name, window.nll, window.number + 1, len(all_windows))
    # Windows have no gaps between them, so their lengths give where each begins in the text.
    special_tokens, ends = len(reader.before) + len(reader.after), [0, *reader.tokens(running_text.text).ends]
    begins = list(accumulate((len(window.ids) - special_tokens for window in all_windows), initial=0))
    window_texts = (running_text.text[ends[begins[number]] : ends[begins[number + 1]]] for number in numbers)
    size_in_bytes = sum(len(text.encode()) for text in window_texts)
    values = [window.nll for window in scored]
    protocol = encoder.protocol(task, None) | scorer.protocol | running_text.protocol | {"window": size}
    return perplexity_result(task, scored, len(all_windows), protocol | bits_per_byte(values, size_in_bytes))


def windows(reader: PllTokenizer, text: str, size: int) -> list[PllText]:
    """Cut the text between words into windows of at most ``size`` tokens, special ones included; no token is left out.

    A word that is longer than a window is cut. Raises BenchmarkError for a text without tokens, or a window without
    room for any.
    """
    ids, words, _ = reader.tokens(text)
    room = min(size - len(reader.before) - len(reader.after), reader.room)
    if not ids or room < 1:
        raise BenchmarkError(f"pseudo-perplexity: {len(ids)} tokens fill no window of {size}", "give it more text")
    window_texts, begin = [], 0
    while begin < len(ids):
        end = min(begin + room, len(ids))
        boundary = end
        while boundary > begin and boundary < len(ids) and words[boundary] == words[boundary - 1]:
            boundary -= 1
        end = boundary if boundary > begin else end
        window_texts.append(reader.framed(ids[begin:end], words[begin:end]))
        begin = end
    return window_texts
