"""What ranks answers in lm-eval's harness without log-likelihoods: pseudo-log-likelihoods, or the length alone.

Imported only to score: lm-eval and torch are heavy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lm_eval.api.model import LM

from sparsebench.benchmarks import pll
from sparsebench.benchmarks.contract import Progress
from sparsebench.errors import UnsupportedError


class AnswerScorer(LM):
    """A model for lm-eval that ranks answers and writes none."""

    progress: Progress | None = None
    sharing = ""
    notes: Mapping[str, str | int | float] = {}

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Raises UnsupportedError."""
        raise UnsupportedError("it has no perplexity", "for a masked language model, choose pseudo_perplexity")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Raises UnsupportedError."""
        raise UnsupportedError("it generates no text", "choose a multiple-choice task")


class MaskedScorer(AnswerScorer):
    """lm-eval's model interface around an encoder with a masked-language-model head.

    A continuation's log-likelihood is the sum of its tokens' pseudo-log-likelihoods, given the context and each other.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int | None) -> None:
        super().__init__()
        self.reader = pll.PllTokenizer(tokenizer, model.config.to_dict())
        self.scorer = pll.PllScorer(model, tokenizer, batch_size)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (Σ log p, whether every token is the most probable one) for each (context, continuation)."""
        texts = [self.reader.continuation(*request.args) for request in requests]
        self.sharing = "off: a masked language model"
        answers = self.scorer.score(texts, self.progress)
        # Read after scoring, which may halve the batches.
        self.notes = {**self.scorer.protocol, "cut_inputs": sum(text.cut_tokens > 0 for text in texts)}
        return [(math.fsum(p for p, _ in tokens), all(first for _, first in tokens)) for tokens in answers]


class LengthScorer(AnswerScorer):
    """A model for which longer answers are likelier, or shorter ones with ``sign`` -1."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign
        self.notes = {"heuristic": "the longest answer" if sign > 0 else "the shortest answer"}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return ``sign`` times the squared length: its order survives lm-eval's division by the length (acc_norm)."""
        self.sharing = "off: no model"
        return [(self.sign * float(len(request.args[1])) ** 2, False) for request in requests]
