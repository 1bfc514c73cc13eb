"""How far a variant's distributions over the next token are from the dense model's, on the same text.

The mean Kullback-Leibler divergence Σ p (log p - log q), p dense, q the variant, in nats, and the share of tokens that
both find likeliest: what llama.cpp's tools call KLD and same top p. They show a change before perplexity does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

ROWS = 256
"""Tokens whose distributions are held in float32 at once."""


@dataclass
class Divergence:
    """Sums over ``tokens`` scored tokens, beside the model ``dense``."""

    dense: Any
    total: float = 0.0
    same: int = 0
    tokens: int = 0

    def add(self, reference: torch.Tensor, given: torch.Tensor) -> None:
        """Add the tokens whose float32 logits (n, vocabulary) the dense model and the variant gave."""
        for whole, other in zip(reference.split(ROWS), given.split(ROWS), strict=True):
            p, q = whole.log_softmax(-1), other.log_softmax(-1)
            self.total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
            self.same += int((p.argmax(-1) == q.argmax(-1)).sum())
            self.tokens += len(p)

    def protocol(self) -> dict[str, float]:
        """Return what a result records."""
        return {"divergence": self.total / self.tokens, "same_top": self.same / self.tokens}
