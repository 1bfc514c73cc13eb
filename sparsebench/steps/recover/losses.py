"""The losses of a student, as in TextBrewer (losses.py of airaria/TextBrewer; ``kl``: Hinton et al. 1503.02531).

Each returns a scalar, float32. ``mask`` (samples, length) is true for tokens and false for padding, which is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

TINY = 1e-9
PIECE = 1 << 22
"""How many logits are processed at once: 16 MB in float32, which fits a processor's cache."""


class _InPieces(torch.autograd.Function):
    """The mean of a loss over tokens. The forward pass also computes the gradient, in the logits' precision."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: torch.Tensor, loss: Callable[..., torch.Tensor], targets: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        # A mean over no tokens is NaN.
        total = torch.full((), 0.0 if len(logits) else math.nan, device=logits.device)
        size = max(1, PIECE // logits.shape[-1])
        for start in range(0, len(logits), size):
            rows = slice(start, start + size)
            with torch.set_grad_enabled(gradient is not None):
                piece = logits[rows].detach().requires_grad_(gradient is not None)
                piece_loss = loss(piece, *(tensor[rows] for tensor in targets)) * (len(piece) / len(logits))
            if gradient is not None:
                (gradient[rows],) = torch.autograd.grad(piece_loss, piece)
            total += piece_loss.detach()
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return ctx.gradient * gradient, None, None


def in_pieces(loss: Callable[..., torch.Tensor], logits: torch.Tensor, *targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens of a ``loss`` of ``logits`` (tokens, vocabulary) and ``targets`` (tokens, …).

    The tokens are processed in pieces. A loss over a vocabulary makes several float32 copies of the logits. Copies of
    all of them would take gigabytes, and allocating those would take longer than the calculation.
    """
    return _InPieces.apply(logits, loss, targets)


def kl(student: torch.Tensor, ids: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the forward Kullback-Leibler divergence of the student from the teacher in nats, the mean over tokens.

    ``student`` (tokens, vocabulary) are logits. ``ids`` (tokens, k) are the teacher's k likeliest tokens, and
    ``teacher`` (tokens, k) their log probabilities at the ``temperature``, normalised over the whole vocabulary. All
    other tokens count as one more outcome, so that the student pays for the probability that it gives them; if k is the
    whole vocabulary, there is no such outcome. Like TextBrewer's ``kd_ce_loss`` it has no factor T². It differs from
    that by the teacher's entropy, which has no gradient.
    """
    scaled = student.float() / temperature
    log_probabilities = scaled.gather(-1, ids) - scaled.logsumexp(-1, keepdim=True)
    divergence = (teacher.exp() * (teacher - log_probabilities)).sum(-1)
    if ids.shape[-1] < student.shape[-1]:
        teacher_rest, student_rest = ((1 - logs.exp().sum(-1)).clamp_min(TINY) for logs in (teacher, log_probabilities))
        divergence = divergence + teacher_rest * (teacher_rest.log() - student_rest.log())
    return divergence.mean()


def likeliest(logits: torch.Tensor, count: int | None, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``kl`` needs of a teacher's ``logits`` (…, vocabulary): ids int64, log probabilities float32.

    Both are (…, count). Without a ``count``, or with one of the vocabulary's size or more, all tokens are returned in
    the vocabulary's order.
    """
    log_probabilities = torch.log_softmax(logits.float() / temperature, -1)
    if count is None or count >= log_probabilities.shape[-1]:
        ids = torch.arange(log_probabilities.shape[-1], device=log_probabilities.device)
        return ids.expand(log_probabilities.shape), log_probabilities
    top = log_probabilities.topk(count, -1)
    return top.indices, top.values


def relative_error(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the squared difference of states (samples, length, width) over the teacher's square, mean over tokens.

    The ratio is taken token by token: a few tokens have states hundreds of times as large as the
    others, and would dominate a plain mean.
    """
    squared_distances = (student.float() - teacher.float())[mask].square().sum(-1)
    return (squared_distances / teacher.float()[mask].square().sum(-1).clamp_min(TINY)).mean()


def hidden_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of the states of tokens (samples, length, width)."""
    return (student.float() - teacher.float())[mask].square().mean()


def cos(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return 1 minus the cosine of the angle between states (samples, length, width), the mean over tokens."""
    return (1 - functional.cosine_similarity(student.float()[mask], teacher.float()[mask], dim=-1)).mean()


def attention_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of attention (samples, heads, length, length) over heads and pairs of tokens.

    Here attention is probabilities, which is what transformers returns; TextBrewer's models gave the scores before the
    softmax.
    """
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand(student.shape)
    return (student.float() - teacher.float())[pairs].square().mean()


def attention_ce(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of attention probabilities, (samples, heads, length, length), over heads and tokens."""
    rows = mask[:, None, :].expand(student.shape[:-1])
    return -(teacher.float() * student.float().clamp_min(TINY).log()).sum(-1)[rows].mean()


Pair = tuple[torch.Tensor, torch.Tensor]
"""The states (samples, length, width) at two depths."""


def fsp(student: Pair, teacher: Pair, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of the flows between two depths (Yim 2017).

    A flow is Xᵀ Y over the number of tokens, (width, width).
    """
    lengths = mask.sum(1)[:, None, None]

    def flow(states: Pair) -> torch.Tensor:
        first, second = (state.float() * mask[..., None] for state in states)
        return first.transpose(1, 2) @ second / lengths

    return functional.mse_loss(flow(student), flow(teacher))


def nst(student: Pair, teacher: Pair, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of X Yᵀ over the width, (length, length), over pairs of tokens.

    This is neuron selectivity transfer (Huang and Wang, 1707.01219) with a linear kernel, TextBrewer's ``mmd``; widths
    may differ.
    """

    def gram(states: Pair) -> torch.Tensor:
        first, second = (state.float() for state in states)
        return first @ second.transpose(1, 2) / second.shape[-1]

    pairs = mask[:, :, None] & mask[:, None, :]
    return (gram(student) - gram(teacher))[pairs].square().mean()
