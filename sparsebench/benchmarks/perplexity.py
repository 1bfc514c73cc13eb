"""Perplexity of a decoder over joined text: exp of the mean negative log-likelihood of a token, window by window.

A window is what the model sees at once: the tokenizer's own first token, if it has one, then text. Every text token
that has a token before it in its window is scored, so a window's first token never is. Windows that the text does not
fill are dropped. By default no two windows overlap.

With ``divergence``, the dense model reads the same windows. How far a variant's distributions over the next token are
from its own shows a change before perplexity does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsebench import sources
from sparsebench.benchmarks.batching import BatchSize, tokens_at_once
from sparsebench.benchmarks.contract import Progress, ScoreResult, TaskSpec, sampled, task_protocol
from sparsebench.benchmarks.own import WINDOW
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
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.models.files.text import longest_input, special_tokens, token_ids

CHUNK = 1 << 22
"""Largest number of elements in a temporary float32 copy: 16 MiB, of which caches hold most."""
ROWS = 256
"""Tokens whose two distributions are held in float32 at once."""


@dataclass(frozen=True)
class Windows:
    """A text in windows: one tuple of ``ids`` per window, as the model sees it, scored from ``first_scored`` on.

    Position ``p`` of a window is token ``offsets + p`` of the text, apart from special tokens before the text or the
    window. ``stride`` is in text tokens. The last ``dropped`` tokens of the text fill no window.
    """

    ids: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    first_scored: tuple[int, ...]
    stride: int
    dropped: int

    @property
    def scored(self) -> tuple[int, ...]:
        """The number of scored tokens of each window."""
        return tuple(len(ids) - first for ids, first in zip(self.ids, self.first_scored, strict=True))

    def selected(self, numbers: Iterable[int]) -> Windows:
        """Return the windows of these numbers alone."""
        chosen = list(numbers)
        return replace(
            self,
            ids=tuple(self.ids[number] for number in chosen),
            offsets=tuple(self.offsets[number] for number in chosen),
            first_scored=tuple(self.first_scored[number] for number in chosen),
        )


@dataclass
class Divergence:
    """Sums over ``tokens`` scored tokens of the divergence from the model ``dense``.

    The mean Kullback-Leibler divergence Σ p (log p - log q), p dense, q the variant, in nats, and the share of tokens
    that both find likeliest: what llama.cpp's tools call KLD and same top p.
    """

    dense: Any
    total: float = 0.0
    same: int = 0
    tokens: int = 0

    def add(self, windows: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Add windows, all or none: float32 logits (n, vocabulary) of their scored tokens, the dense model's first.

        Raises BenchmarkError for two vocabularies.
        """
        total, same, tokens = self.total, self.same, self.tokens
        for dense_logits, variant_logits in windows:
            if dense_logits.shape != variant_logits.shape:
                raise BenchmarkError(
                    f"perplexity: no divergence between vocabularies of {dense_logits.shape[-1]:,} and "
                    f"{variant_logits.shape[-1]:,} tokens",
                    "compare with the dense model, or leave out `divergence`",
                )
            for dense_rows, variant_rows in zip(dense_logits.split(ROWS), variant_logits.split(ROWS), strict=True):
                p, q = dense_rows.log_softmax(-1), variant_rows.log_softmax(-1)
                total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
                same += int((p.argmax(-1) == q.argmax(-1)).sum())
                tokens += len(p)
        # Only now: a pass that runs out of memory is made again.
        self.total, self.same, self.tokens = total, same, tokens

    def protocol(self) -> dict[str, float]:
        """Return what a result records."""
        return {"divergence": self.total / self.tokens, "same_top": self.same / self.tokens}


class Perplexity:
    """One decoder and the perplexity task.

    ``original`` gives the dense model's id of each token of a trimmed vocabulary. With it, a window of the same tokens
    is the same document as the dense model's. ``dense`` loads the dense model, for a task that asks for the divergence.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        progress: Progress | None,
        original: Sequence[int] | None,
        dense: Callable[[], PreTrainedModel] | None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.progress = progress
        self.original = original
        self.dense = dense

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score the task's passages; ``limit`` is in windows.

        Raises BenchmarkError when the text fills no window or a likelihood is not finite.
        """
        task = spec.required_benchmark
        running = RunningText.of(spec, cache)
        size = window_length(spec, longest_input(self.model.config.to_dict()), WINDOW)
        first, _ = special_tokens(self.tokenizer)
        published = task.form == "published"
        text_prefix, window_prefix = (first, []) if published else ([], first)
        bos_position = "before the text, once" if published else "in every window"
        ids = token_ids(self.tokenizer, running.text)
        all_windows = windows_of(ids, size, task.stride, window_prefix, text_prefix)
        numbers = sampled(len(all_windows.ids), spec.limit)
        windows = all_windows.selected(numbers)
        # A trimmed vocabulary has no distribution over the dense model's tokens.
        divergence = Divergence(self.dense()) if spec.divergence and self.dense and self.original is None else None
        batch = BatchSize(max(1, tokens_at_once(self.model, 0) // size))
        losses = window_losses(self.model, windows, self.progress, batch, divergence)
        dense_ids = [to_dense_ids(ids, self.original) for ids in windows.ids]
        scored = [ScoredWindow(*window) for window in zip(numbers, dense_ids, losses, windows.scored, strict=True)]
        return perplexity_result(
            task,
            scored,
            len(all_windows.ids),
            {
                **task_protocol(task, f"sparsebench perplexity, transformers {version('transformers')}"),
                "split": "" if task.form else "validation",
                **running.protocol,
                "window": size,
                "stride": windows.stride,
                "bos": " ".join(self.tokenizer.convert_ids_to_tokens(first)) or "none",
                "bos_stands": bos_position if first else "nowhere",
                "tokenizer": f"{type(self.tokenizer).__name__}, {len(self.tokenizer):,} tokens",
                "dropped_tokens": all_windows.dropped,
                "batch_size": batch.most_rows,
                "dtype": dtype_name(self.model.dtype),
                "logits_dtype": "float32",
                **bits_per_byte_fields(self.tokenizer, running.text, windows, losses),
                **(divergence.protocol() if divergence else {}),
            },
        )


def windows_of(
    ids: Sequence[int],
    size: int,
    stride: int | None = None,
    window_prefix: Sequence[int] = (),
    text_prefix: Sequence[int] = (),
) -> Windows:
    """Cut ``ids``, after ``text_prefix``, into windows of ``size`` tokens, each beginning with ``window_prefix``.

    Raises BenchmarkError when they do not fill one window.
    """
    prefixed = [*text_prefix, *ids]
    room = size - len(window_prefix)
    step = min(stride or room, room)
    if room < 1 or len(prefixed) < room or size < 2:
        raise BenchmarkError(
            f"perplexity: a text of {len(prefixed)} tokens fills no window of {size}",
            "give it more text, or a smaller window",
        )
    begins = range(0, len(prefixed) - room + 1, step)
    # A window's first token has nothing before it; a later window scores only the tokens that are new.
    first_scored = [max(1, size - step if begin else len(window_prefix)) for begin in begins]
    return Windows(
        ids=tuple((*window_prefix, *prefixed[begin : begin + room]) for begin in begins),
        offsets=tuple(begin - len(text_prefix) - len(window_prefix) for begin in begins),
        first_scored=tuple(first_scored),
        stride=step,
        dropped=len(prefixed) - begins[-1] - room,
    )


def window_losses(
    model: PreTrainedModel,
    windows: Windows,
    progress: Progress | None = None,
    batch: BatchSize | None = None,
    divergence: Divergence | None = None,
) -> list[float]:
    """Return each window's negative log-likelihood, summed over its scored tokens, in nats.

    The output head and everything after it compute in float32, ``batch`` windows at a time (default: one). With a
    ``divergence``, the dense model runs on the same windows. Raises BenchmarkError for the first likelihood that is not
    finite, when one window does not fit into memory, and when the model's logits still come out in another precision.
    """
    sums: list[float] = []
    pairs = list(zip(windows.ids, windows.first_scored, strict=True))
    for _, values in (batch or BatchSize(1)).parts(pairs, lambda part: _losses_of_pass(model, part, divergence)):
        for value in values:
            sums.append(value)
            check_finite("perplexity", value, len(sums), len(pairs))
            if progress:
                progress(len(sums), len(pairs))
    return sums


def _losses_of_pass(
    model: PreTrainedModel, windows: Sequence[tuple[tuple[int, ...], int]], divergence: Divergence | None
) -> list[float]:
    """Return the negative log-likelihoods of windows of one length, each (tokens, position of the first scored one)."""
    tokens = torch.tensor([ids for ids, _ in windows], device=model.device)
    with torch.inference_mode(), wide_head(model):
        logits = model(input_ids=tokens, use_cache=False).logits
        sums = [
            _summed_loss(window_logits[first - 1 : -1], ids[first:])
            for window_logits, ids, (_, first) in zip(logits, tokens, windows, strict=True)
        ]
    if divergence:
        with torch.inference_mode(), wide_head(divergence.dense):
            reference = divergence.dense(input_ids=tokens, use_cache=False).logits
            divergence.add(
                (dense_logits[first - 1 : -1], window_logits[first - 1 : -1])
                for dense_logits, window_logits, (_, first) in zip(reference, logits, windows, strict=True)
            )
    return sums


@contextmanager
def wide_head(model: PreTrainedModel) -> Iterator[None]:
    """Make the model's output head compute in float32: in bfloat16 a logit is rounded to one part in 256.

    The weights are widened one part of the vocabulary at a time. What the model's code then does to its logits is in
    float32 too. Numbers that were bfloat16 are multiplied by the processor's units for it, which add up in float32: as
    exact, and up to four times as fast.
    """
    head: Any = model.get_output_embeddings()
    narrow = isinstance(head, torch.nn.Linear) and head.weight.itemsize < torch.float32.itemsize
    if not narrow:
        yield
        return

    def forward(states: torch.Tensor) -> torch.Tensor:
        rows = max(1, CHUNK // head.in_features)
        wide = states.float().flatten(0, -2)
        logits = wide.new_empty(len(wide), head.out_features)
        exact = states.dtype == head.weight.dtype == torch.bfloat16
        with _products("medium" if exact else "highest"):
            for start in range(0, head.out_features, rows):
                part = slice(start, start + rows)
                torch.mm(wide, head.weight[part].float().T, out=logits[:, part])
                if head.bias is not None:
                    logits[:, part] += head.bias[part].float()
        return logits.view(*states.shape[:-1], -1)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """Set torch's precision of float32 products: ``highest``, or ``medium``, which rounds the factors to bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return Σ −log p of ``targets`` (n,) under float32 ``logits`` (n, vocabulary), summed in float64."""
    if logits.dtype != torch.float32:
        raise BenchmarkError(f"perplexity: the model gives logits in {logits.dtype}", "score it with dtype: float32")
    rows, total = max(1, CHUNK // logits.shape[-1]), 0.0
    for row_logits, row_targets in zip(logits.split(rows), targets.split(rows), strict=True):
        row_losses = row_logits.logsumexp(dim=-1) - row_logits.gather(1, row_targets.unsqueeze(1)).squeeze(1)
        total += float(row_losses.double().sum())
    return total


def bits_per_byte_fields(
    tokenizer: Any, text: str, windows: Windows, losses: Sequence[float]
) -> dict[str, int | float]:
    """Return the UTF-8 bytes that the scored tokens stand for, and the mean negative log-likelihood in bits per byte.

    Bytes do not depend on the tokenizer. The result is empty if the tokenizer is a slow one, which gives no offsets.
    """
    if not tokenizer.is_fast:
        return {}
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [0, *(end for _, end in encoded["offset_mapping"])]
    size = 0
    for offset, ids, first in zip(windows.offsets, windows.ids, windows.first_scored, strict=True):
        # From the end of the token before: spaces count for the token after them, whatever start the tokenizer reports.
        size += len(text[ends[max(0, offset + first)] : ends[offset + len(ids)]].encode())
    return bits_per_byte(losses, size)
