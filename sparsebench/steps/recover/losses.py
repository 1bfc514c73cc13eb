"""What a student is trained by, as TextBrewer defines it (losses.py of airaria/TextBrewer; Hinton et al. 1503.02531 for ``kl``).

Each gives a scalar, float32. ``mask`` (samples, length) is true where a token is; what is padding counts nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

TINY = 1e-9
PIECE = 1 << 22
"""Logits that are looked at together, 16 MB in float32: what fits a processor's cache."""


class _InPieces(torch.autograd.Function):
    """The mean of a loss over tokens, and its gradient, which is known at once and kept in the logits' own precision."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: torch.Tensor, loss: Callable[..., torch.Tensor], beside: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        # A mean over nothing is no number.
        total = torch.full((), 0.0 if len(logits) else math.nan, device=logits.device)
        size = max(1, PIECE // logits.shape[-1])
        for start in range(0, len(logits), size):
            rows = slice(start, start + size)
            with torch.set_grad_enabled(gradient is not None):
                piece = logits[rows].detach().requires_grad_(gradient is not None)
                found = loss(piece, *(one[rows] for one in beside)) * (len(piece) / len(logits))
            if gradient is not None:
                (gradient[rows],) = torch.autograd.grad(found, piece)
            total += found.detach()
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return ctx.gradient * given, None, None


def in_pieces(loss: Callable[..., torch.Tensor], logits: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
    """``loss`` of ``logits`` (tokens, vocabulary) and what is ``beside`` them, (tokens, …): a mean over tokens.

    It is calculated for some tokens at a time. Losses over a vocabulary make several float32 copies of the logits, and whole
    ones take gigabytes, and longer to be had from the system than to be calculated.
    """
    found: torch.Tensor = _InPieces.apply(logits, loss, beside)
    return found


def kl(student: torch.Tensor, ids: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The forward Kullback-Leibler divergence of the student from the teacher, in nats, the mean over tokens.

    ``student`` (tokens, vocabulary) are logits. ``teacher`` (tokens, k) are the teacher's logarithms of probabilities at the
    ``temperature``, normalised over the whole vocabulary, of its k likeliest tokens ``ids`` (tokens, k). All other tokens are
    one outcome more, so that a student pays for what it gives them; with k of the whole vocabulary nothing is left of it.
    As TextBrewer's ``kd_ce_loss`` it has no factor T², and differs from it by the teacher's entropy, which has no gradient.
    """
    scaled = student.float() / temperature
    own = scaled.gather(-1, ids) - scaled.logsumexp(-1, keepdim=True)
    found = (teacher.exp() * (teacher - own)).sum(-1)
    if ids.shape[-1] < student.shape[-1]:
        rest, left = ((1 - one.exp().sum(-1)).clamp_min(TINY) for one in (teacher, own))
        found = found + rest * (rest.log() - left.log())
    return found.mean()


def likeliest(logits: torch.Tensor, count: int | None, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``kl`` takes of a teacher's ``logits`` (…, vocabulary): ids int64 and log probabilities float32, (…, count) each.

    Without a ``count`` all of them, in the order of the vocabulary.
    """
    spread = torch.log_softmax(logits.float() / temperature, -1)
    if count is None or count >= spread.shape[-1]:
        return torch.arange(spread.shape[-1], device=spread.device).expand(spread.shape), spread
    top = spread.topk(count, -1)
    return top.indices, top.values


def relative(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The squared difference of a token's states (samples, length, width) over the teacher's square, the mean over tokens.

    As block by block: a few tokens have states hundreds of times as large, and would be all that counts.
    """
    lost = (student.float() - teacher.float())[mask].square().sum(-1)
    return (lost / teacher.float()[mask].square().sum(-1).clamp_min(TINY)).mean()


def hidden_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean square by which the states of tokens (samples, length, width) differ."""
    return (student.float() - teacher.float())[mask].square().mean()


def cos(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One less the cosine of the angle between a token's states (samples, length, width), the mean over tokens."""
    return (1 - functional.cosine_similarity(student.float()[mask], teacher.float()[mask], dim=-1)).mean()


def attention_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean square by which attention (samples, heads, length, length) differs, over heads and pairs of tokens.

    The field's libraries give attention as probabilities, where TextBrewer's models gave what stands before the softmax.
    """
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand(student.shape)
    return (student.float() - teacher.float())[pairs].square().mean()


def attention_ce(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of attention (samples, heads, length, length), probabilities, the mean over heads and tokens."""
    rows = mask[:, None, :].expand(student.shape[:-1])
    return -(teacher.float() * student.float().clamp_min(TINY).log()).sum(-1)[rows].mean()


Pair = tuple[torch.Tensor, torch.Tensor]
"""The states (samples, length, width) at two depths."""


def fsp(student: Pair, teacher: Pair, mask: torch.Tensor) -> torch.Tensor:
    """The mean square by which the flows between two depths differ, (width, width): Xᵀ Y over the number of tokens (Yim 2017)."""
    lengths = mask.sum(1)[:, None, None]

    def flow(states: Pair) -> torch.Tensor:
        one, other = (state.float() * mask[..., None] for state in states)
        return one.transpose(1, 2) @ other / lengths

    return functional.mse_loss(flow(student), flow(teacher))


def nst(student: Pair, teacher: Pair, mask: torch.Tensor) -> torch.Tensor:
    """The squares by which X Yᵀ over the width, (length, length), differs: the mean over pairs of tokens (TextBrewer's ``mmd``).

    Neuron selectivity transfer (Huang and Wang, 1707.01219) with a linear kernel; widths may differ.
    """

    def gram(states: Pair) -> torch.Tensor:
        one, other = (state.float() for state in states)
        return one @ other.transpose(1, 2) / other.shape[-1]

    pairs = mask[:, :, None] & mask[:, None, :]
    return (gram(student) - gram(teacher))[pairs].square().mean()
