"""Pseudo-perplexity of a masked language model: exp of the mean negative pseudo-log-likelihood of a token.

(Salazar et al. 2020, section 2.3; here with the correction within words.) A window is what the model sees at once, as
many whole words as fit; every one of its tokens is scored given the others.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

from sparsebench import sources
from sparsebench.benchmarks.contract import Outcome, ScoreResult, TaskSpec
from sparsebench.benchmarks.perplexity import JOINER, pooled
from sparsebench.benchmarks.statistics import mean_stderr
from sparsebench.benchmarks.task import Task
from sparsebench.errors import BenchmarkError
from sparsebench.sources.text import read_texts

if TYPE_CHECKING:
    from sparsebench.benchmarks.encoder import Encoder
    from sparsebench.benchmarks.pll import Reader, Text

WINDOW = 128


def score(encoder: Encoder, task: Task, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    """Score the task's passages, joined with blank lines; ``limit`` is in windows.

    An outcome is a window: its negative pseudo-log-likelihood (nats), with the number of its tokens as its label.
    Raises BenchmarkError when one is not finite.
    """
    from sparsebench.benchmarks import pll

    found = read_texts(sources.fetch(sources.parse(task.data[0]), cache), *task.fields)
    text = JOINER.join(passage for (passage,) in found.rows)
    model = encoder.masked
    reader = pll.Reader(encoder.tokenizer, model.config.to_dict())
    size = min(WINDOW, reader.longest)
    every = windows(reader, text, size)
    part = every[: spec.limit]
    scorer = pll.Scorer(model, encoder.tokenizer, encoder.asked_batch_size)
    answers = scorer.score(part, encoder.progress)
    values = [-math.fsum(likelihood for likelihood, _ in window) for window in answers]
    broken = next((place for place, value in enumerate(values, 1) if not math.isfinite(value)), None)
    if broken:
        raise BenchmarkError(
            f"task {task.name}: the likelihood of window {broken} of {len(values)} is not finite",
            "the model's weights overflow or are damaged: try dtype float32",
        )
    counts = [len(window) for window in answers]
    result = pooled(values, counts)
    each = [value / count for value, count in zip(values, counts, strict=True)]
    return ScoreResult(
        task=task.name,
        metric=task.metric,
        score=result,
        stderr=result * mean_stderr(each),
        n=len(values),
        limited=len(part) < len(every),
        chance=None,
        outcomes=tuple(
            Outcome(str(place), _hash(window), value, float(count))
            for place, (window, value, count) in enumerate(zip(part, values, counts, strict=True))
        ),
        protocol=encoder.protocol(task)
        | scorer.protocol
        | {
            "passages": len(found.rows),
            "joiner": "blank line",
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "window": size,
            "documents": len(every),
            "scored_tokens": sum(counts),
            "stderr": "delta method: score times the standard error of the windows' mean log-likelihoods",
        },
    )


def windows(reader: Reader, text: str, size: int) -> list[Text]:
    """The text in windows of at most ``size`` tokens, special ones among them, between words; no token is left out.

    A word that is longer than a window is cut. Raises BenchmarkError for a text without tokens.
    """
    ids, words, _ = reader.tokens(text)
    room = min(size - len(reader.before) - len(reader.after), reader.room)
    if not ids or room < 1:
        raise BenchmarkError(f"pseudo-perplexity: {len(ids)} tokens fill no window of {size}", "give it more text")
    found, begin = [], 0
    while begin < len(ids):
        end = min(begin + room, len(ids))
        whole = end
        while whole > begin and whole < len(ids) and words[whole] == words[whole - 1]:
            whole -= 1
        end = whole if whole > begin else end
        found.append(reader.framed(ids[begin:end], words[begin:end]))
        begin = end
    return found


def _hash(text: Any) -> str:
    return hashlib.sha1(" ".join(map(str, text.ids)).encode()).hexdigest()
