"""Chooses the weights to remove: exact counts, ties broken by position, for every granularity and pattern.

A mask is True where a weight is removed. Counts are ``round(s·n)`` per comparison group, as in
``torch.nn.utils.prune``. Among equal scores the earlier weight (row by row) is removed first. With a quota that keeps
zeros the mask includes them, and n counts the other weights only, as in torch's ``PruningContainer``. To that end zeros
get keys below all others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparsebench.errors import UnsupportedError
from sparsebench.manifest.schema import BLOCK, ROWS_OR_COLUMNS, is_nm
from sparsebench.steps.prune.contract import Quota
from sparsebench.steps.prune.keys import KeyThreshold, ordinals, thresholds

CHUNK = 1 << 23
"""Weights processed at once: bounds the temporaries."""
WHOLE = 1 << 24
"""The most weights that are partially sorted at once; for more, the threshold is found by counting."""
FEW = 8
"""The largest group whose entries are ranked by comparing every pair."""


@dataclass(frozen=True)
class RemovalMask:
    """The removed weights (True), in the scores' shape; ``notes`` say what a reader must know."""

    mask: torch.Tensor
    notes: tuple[str, ...] = ()


def choose(
    scores: torch.Tensor, quotas: Sequence[Quota], name: str = "", original: torch.Tensor | None = None
) -> Iterator[RemovalMask]:
    """Yield, for each quota, the mask of the lowest ``scores`` (out, in); the quotas share the work on the scores.

    Scores are int32 or any float, not negative. A block's score is the sum of its entries' scores, in float64. A whole
    row's or column's score is their norm where the method has a setting ``norm``, else their sum. An N:M pattern fixes
    its own sparsity. ``original`` are the weights before pruning, for quotas that keep their zeros. Raises ModelError,
    naming the tensor, for NaN and infinite scores. Raises UnsupportedError where ``original`` is missing.
    """
    keys_of: dict[tuple[str, bool, object], torch.Tensor] = {}
    masks_of_ranking: dict[tuple[object, ...], Iterator[torch.Tensor]] = {}
    zeros = None if original is None else original == 0
    for quota in quotas:
        kind, kept_zeros = kind_of(quota.pattern), zeros if quota.keep_zeros else None
        if quota.keep_zeros and zeros is None:
            problem = f"{name}: `keep_zeros` does not work with this method: it does not pass on the original weights"
            raise UnsupportedError(problem, "leave out `keep_zeros`")
        norm = _norm_of(quota)
        unit_key = (quota.pattern if kind in ("blocks", "lines") else "weights", quota.keep_zeros, norm)
        if unit_key not in keys_of:
            keys_of[unit_key] = ordinals(_unit_scores(scores, quota.pattern, norm), name)
            if kept_zeros is not None:
                live = _unit_scores(~kept_zeros, quota.pattern, None)
                keys_of[unit_key] = keys_of[unit_key].masked_fill(live == 0, -1)
        if kind == "N:M":
            mask = by_pattern(keys_of[unit_key], quota.pattern)
        else:
            ranking = _ranking_key(quota)
            if ranking not in masks_of_ranking:
                sparsities = [other_quota.sparsity for other_quota in quotas if _ranking_key(other_quota) == ranking]
                select = _masks_by_row if quota.granularity == "row" else _masks_by_matrix
                masks_of_ranking[ranking] = select(keys_of[unit_key], sparsities, quota.keep_zeros)
            mask = next(masks_of_ranking[ranking])
        mask = _expand_mask(mask, scores.shape, quota.pattern)
        if kept_zeros is not None:
            mask |= kept_zeros
        yield RemovalMask(mask, notes(scores.shape, quota.pattern))


def kind_of(pattern: str) -> str:
    """Return ``unstructured``, ``N:M``, ``blocks`` or ``lines``. Raises UnsupportedError for any other pattern."""
    if pattern == "unstructured":
        return pattern
    if is_nm(pattern):
        return "N:M"
    if BLOCK.fullmatch(pattern):
        return "blocks"
    if pattern in ROWS_OR_COLUMNS:
        return "lines"
    problem = f"pattern {pattern!r} is not known"
    raise UnsupportedError(problem, "unstructured, N:M such as 2:4, blocks such as 4x4, rows or columns")


def pair(pattern: str) -> tuple[int, int]:
    """Return the two numbers of an N:M pattern or of RxC blocks."""
    first, second = re.split("[:x]", pattern)
    return int(first), int(second)


def notes(shape: Sequence[int], pattern: str) -> tuple[str, ...]:
    """Return notes of the rows and columns of a matrix (out, in) that a pattern does not cover."""
    kind = kind_of(pattern)
    if kind == "N:M" and shape[1] % pair(pattern)[1]:
        return (f"columns beyond the last whole group of {pattern} kept",)
    if kind == "blocks" and (shape[0] % pair(pattern)[0] or shape[1] % pair(pattern)[1]):
        return (f"rows and columns beyond the last whole block of {pattern} kept",)
    return ()


def count(sparsity: float, size: int) -> int:
    """Return how many of ``size`` weights to remove, by Python's round: halves are rounded to the even number."""
    return round(sparsity * size)


def lowest(keys: torch.Tensor, threshold: KeyThreshold) -> torch.Tensor:
    """Return a mask of the keys below the threshold and of the first ``ties`` keys equal to it, in row-major order."""
    mask = keys < threshold.key
    if threshold.ties:
        equal = (keys == threshold.key).reshape(-1).nonzero().reshape(-1)
        mask.view(-1)[equal[: threshold.ties]] = True
    return mask


def by_pattern(keys: torch.Tensor, pattern: str) -> torch.Tensor:
    """Return the N:M mask along the input (dimension 1): of every M keys, the M−N lowest are removed.

    Columns beyond the last whole group of M stay, as no kernel could use zeros there.
    """
    keep, group = pair(pattern)
    rows, covered = keys.shape[0], keys.shape[1] // group * group
    mask = torch.zeros(keys.shape, dtype=torch.bool, device=keys.device)
    step = max(1, CHUNK // max(1, covered))
    for start in range(0, rows if covered else 0, step):
        groups = keys[start : start + step, :covered].reshape(-1, group)
        mask[start : start + step, :covered] = lowest_of_each(groups.T, group - keep).T.reshape(-1, covered)
    return mask


def lowest_of_each(keys: torch.Tensor, remove: int) -> torch.Tensor:
    """Return a mask of the ``remove`` lowest of each column of ``keys`` (M, n); of equal keys the upper comes first."""
    group = keys.shape[0]
    if group > FEW:
        (mask,) = _lowest_in_rows(keys.T.contiguous(), [remove])
        return mask.T
    keys = keys.contiguous()
    lower = torch.zeros(keys.shape, dtype=torch.int8, device=keys.device)
    for late in range(1, group):
        for early in range(late):
            first = keys[early] <= keys[late]
            lower[late] += first
            lower[early] += first.logical_not_()
    return lower < remove


def block_sums(scores: torch.Tensor, pattern: str) -> torch.Tensor:
    """Return the sums of scores over whole blocks of R rows and C columns, (out // R, in // C), float64."""
    height, width = pair(pattern)
    down, across = scores.shape[0] // height, scores.shape[1] // width
    sums = torch.empty(down, across, dtype=torch.float64, device=scores.device)
    step = max(1, CHUNK // 8 // max(1, height * scores.shape[1]))
    for start in range(0, down if across else 0, step):
        stop = min(start + step, down)
        rows = scores[start * height : stop * height, : across * width].reshape(stop - start, height, -1)
        total = rows[:, 0].to(torch.float64, copy=True)
        for row in range(1, height):
            total += rows[:, row]
        sums[start:stop] = total.view(stop - start, across, width).sum(2)
    return sums


def line_norms(scores: torch.Tensor, pattern: str, norm: object) -> torch.Tensor:
    """Return one number for each row or column of scores (out, in): their sum in float64, or their norm.

    The norm is of order 1, 2 or ``inf``, in float32 (of float64 scores in float64), as
    ``torch.nn.utils.prune.ln_structured`` computes it.
    """
    axis = _line_dim(pattern)
    if norm is None:
        return scores.sum(axis, dtype=torch.float64)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return torch.linalg.vector_norm(scores, float(str(norm)), axis, dtype=dtype)


def _line_dim(pattern: str) -> int:
    """Return the dimension along which the entries of a row, or of a column, are."""
    return 1 if pattern == "rows" else 0


def _ranking_key(quota: Quota) -> tuple[object, ...]:
    """Return what quotas have in common that are chosen from one ranking."""
    return quota.pattern, quota.granularity, quota.keep_zeros, _norm_of(quota)


def _norm_of(quota: Quota) -> object:
    return getattr(quota.settings, "norm", None) if quota.pattern in ROWS_OR_COLUMNS else None


def _unit_scores(scores: torch.Tensor, pattern: str, norm: object) -> torch.Tensor:
    """Return the scores of the units that are removed whole: blocks, rows or columns, else single weights."""
    kind = kind_of(pattern)
    if kind == "blocks":
        return block_sums(scores, pattern)
    return line_norms(scores, pattern, norm) if kind == "lines" else scores


def _expand_mask(mask: torch.Tensor, shape: Sequence[int], pattern: str) -> torch.Tensor:
    """Expand a mask of blocks, rows or columns to one of weights; weights that no whole block covers stay."""
    kind = kind_of(pattern)
    if kind == "lines":
        return mask.unsqueeze(_line_dim(pattern)).expand(tuple(shape)).contiguous()
    if kind != "blocks":
        return mask
    height, width = pair(pattern)
    spread = torch.zeros(tuple(shape), dtype=torch.bool, device=mask.device)
    expanded = mask.repeat_interleave(height, 0).repeat_interleave(width, 1)
    spread[: expanded.shape[0], : expanded.shape[1]] = expanded
    return spread


def _masks_by_matrix(keys: torch.Tensor, sparsities: Sequence[float], keep_zeros: bool) -> Iterator[torch.Tensor]:
    """Yield one mask per sparsity; all weights of the matrix compete. With ``keep_zeros``, keys below 0 always go first."""
    live = keys[keys >= 0] if keep_zeros else keys
    zeros = keys.numel() - live.numel()
    ranks = [count(sparsity, live.numel()) for sparsity in sparsities]
    if keys.numel() <= WHOLE or keys.dtype != torch.int32:
        # A partial sort is faster than counting, but makes a copy.
        masks = _lowest_in_rows(keys.reshape(1, -1), [zeros + rank for rank in ranks])
        yield from (mask.view(keys.shape) for mask in masks)
        return
    for threshold in thresholds([[live], [live]], ranks):
        yield lowest(keys, threshold)


def _masks_by_row(keys: torch.Tensor, sparsities: Sequence[float], keep_zeros: bool) -> Iterator[torch.Tensor]:
    """Return one mask per sparsity, as ``_masks_by_matrix``; the weights of each output row (dimension 0) compete."""
    columns = keys.shape[1]
    if not keep_zeros:
        return _lowest_in_rows(keys, [count(sparsity, columns) for sparsity in sparsities])
    masks = [torch.empty(keys.shape, dtype=torch.bool, device=keys.device) for _ in sparsities]
    zeros = (keys < 0).sum(1)
    for number in zeros.unique().tolist():  # rows with the same number of zeros have the same count
        rows = (zeros == number).nonzero().flatten()
        counts = [number + count(sparsity, columns - number) for sparsity in sparsities]
        for mask, part in zip(masks, _lowest_in_rows(keys[rows], counts), strict=True):
            mask[rows] = part
    return iter(masks)


def _lowest_in_rows(keys: torch.Tensor, counts: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yield, for each count of ``counts``, a mask of the ``count`` lowest keys of every row, from one partial sort."""
    if keys.device.type != "cpu":
        yield from _lowest_by_sorting(keys, counts)
        return
    rows, columns = keys.shape
    inner = sorted({number for number in counts if 0 < number < columns})
    values = keys.numpy()
    limits = np.empty((len(inner), rows, 1), dtype=values.dtype)
    step = max(1, CHUNK // max(1, columns))
    for start in range(0, rows if inner else 0, step):
        ordered = np.array(values[start : start + step], order="C")
        done = 0
        for index, number in enumerate(inner):
            # Entries left of the last limit are already the lowest: only the rest is partitioned again.
            ordered[:, done:].partition(number - 1 - done, axis=1)
            limits[index, start : start + step, 0] = ordered[:, number - 1]
            done = number
    for number in counts:
        mask = np.full(values.shape, number >= columns)
        if number in inner:
            limit = limits[inner.index(number)]
            for start in range(0, rows, step):
                part = slice(start, start + step)
                _mark_lowest(values[part], limit[part], number, mask[part])
        yield torch.from_numpy(mask)


def _lowest_by_sorting(keys: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
    """Return the same masks for keys on a GPU, where numpy cannot work: a stable sort keeps equal keys in order."""
    rows, columns = keys.shape
    masks = [torch.zeros(keys.shape, dtype=torch.bool, device=keys.device) for _ in counts]
    step = max(1, CHUNK // max(1, columns))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        order = torch.sort(keys[part], dim=1, stable=True).indices
        for mask, number in zip(masks, counts, strict=True):
            mask[part] = mask[part].scatter(1, order[:, :number], True)
    return masks


def _mark_lowest(keys: NDArray[np.integer], limit: NDArray[np.integer], number: int, mask: NDArray[np.bool_]) -> None:
    """Mark in ``mask`` the ``number`` lowest keys of each row; ``limit`` (rows, 1) is the ``number``-th lowest."""
    np.less_equal(keys, limit, out=mask)
    if np.count_nonzero(mask) == number * len(keys):
        return
    equal = np.flatnonzero(keys == limit)
    row = equal // keys.shape[1]
    surplus = np.add.reduce(mask, axis=1, dtype=np.int64) - number
    until = np.cumsum(np.bincount(row, minlength=len(keys)))
    from_end = until[row] - np.arange(1, len(row) + 1)
    mask.reshape(-1)[equal[from_end < surplus[row]]] = False
