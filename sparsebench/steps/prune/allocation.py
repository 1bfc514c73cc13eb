"""The allocation of a model's sparsity to its transformer blocks by their outliers (OWL).

OWL (Yin et al. 2023, Outlier Weighed Layerwise Sparsity, arXiv:2310.05175): a block with more outliers among its
Wanda scores keeps more weights. The paper's "layer" is called a block here.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsebench.steps.prune.contract import Layer
from sparsebench.steps.prune.settings import SPREAD


def outliers(layers: Sequence[Layer], limits: Sequence[float]) -> tuple[list[int], int]:
    """Count a block's Wanda scores above each of ``limits`` times their mean, and its weights.

    The mean is over all linear ``layers`` of the block together. Scores are computed twice, so that only one layer's
    are in memory at a time. Raises ModelError, naming the tensor, for NaN or infinite weights or inputs.
    """
    from sparsebench.steps.finite import check_weights
    from sparsebench.steps.prune.methods.scores import wanda_scores

    check_weights(layers)
    count = sum(layer.weights.numel() for layer in layers)
    total = sum(float(wanda_scores(layer).sum(1).double().sum()) for layer in layers)
    above = [0] * len(limits)
    for layer in layers:
        scores = wanda_scores(layer)
        for number, limit in enumerate(limits):
            above[number] += int((scores > limit * total / max(count, 1)).sum())
    return above, count


def owl(shares: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float = SPREAD) -> list[float]:
    """Return the sparsity s_l of each block, from its share D_l of outliers and its number n_l of weights (``sizes``).

    d_l = (D_l − min D) / (max D − min D) · 2·spread,  s_l = clip(s + c − d_l, 0, 1)

    The paper has c = mean(d) without clipping, which exceeds 1 above a sparsity of about 92%, and gives all blocks the
    same weight whatever their size. Here c is chosen so that Σ n_l·s_l = s·Σ n_l. Both agree where blocks have equal
    sizes and nothing is clipped.
    """
    low, high = min(shares), max(shares)
    width = high - low
    moved = [sparsity - (share - low) / width * 2 * spread if width > 0 else sparsity for share in shares]
    shift = _shift(moved, sizes, sparsity * sum(sizes))
    return [_clip(value + shift) for value in moved]


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _shift(values: Sequence[float], sizes: Sequence[int], total: float) -> float:
    """Return c with Σ sizes·clip(values + c) = ``total``; between clipping points the sum grows linearly with c."""
    points = sorted([-value for value in values] + [1 - value for value in values])

    def removed(shift: float) -> float:
        return sum(size * _clip(value + shift) for value, size in zip(values, sizes, strict=True))

    before = points[0]
    for point in points:
        if removed(point) >= total:
            break
        before = point
    low, high = removed(before), removed(point)
    return point if high <= low else before + (total - low) / (high - low) * (point - before)
