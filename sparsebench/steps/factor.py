"""Computes SparseGPT's factor from a layer's input statistics: upper triangular U, UᵀU = H⁻¹, H the damped Hessian.

With J the reversal of the order of columns and J H J = L Lᵀ (Cholesky), U = J L⁻¹ J. So the explicit inverse, which the
published code forms and factorises once more, is never needed. Reversing both axes of a matrix is reversing its memory,
and both steps work in place: the only in × in matrix in memory is that of the statistics. The work is done by PyTorch's
matrix products, because SciPy's LAPACK has threads of its own, which get in the way of PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sparsebench.errors import ModelError
from sparsebench.models.replay.gather import InputStatistics
from sparsebench.steps.finite import check_gram

DAMPING = (0.01, 0.1, 1.0, 10.0)
"""Shares of the mean diagonal to add to the diagonal: the published one, then those tried when Cholesky fails."""
PANEL = 128
"""The number of columns factorised at once."""
CHUNK = 1 << 22
"""The number of entries moved at once."""


@dataclass(frozen=True)
class Factor:
    """``upper`` (in, in) is U; ``dead`` (in,) marks inputs that are always zero."""

    upper: torch.Tensor
    dead: torch.Tensor
    notes: tuple[str, ...] = ()


def factorise(
    inputs: InputStatistics, name: str, dtype: torch.dtype = torch.float32, first: float = DAMPING[0]
) -> Factor:
    """Return U for H = 2/n · Σ x xᵀ + damping, in ``dtype``.

    A gram that already has that dtype is overwritten, and ``inputs.gram`` becomes None. ``first`` is the share of the
    mean diagonal that is tried before larger ones of DAMPING. A dead input gets H_jj = 1. Raises ModelError, naming the
    tensor, for NaN or infinite statistics, and where no damping tried makes H positive definite.
    """
    if inputs.gram is None:
        raise ValueError(f"{name}: no gram of what it reads, or used up")
    matrix = inputs.gram.to(dtype).contiguous()
    if matrix.data_ptr() == inputs.gram.data_ptr():
        inputs.gram = None
    check_gram(matrix, name)
    matrix *= 2 / max(inputs.tokens, 1)
    diagonal = matrix.diagonal().clone()
    dead = diagonal == 0
    diagonal[dead] = 1
    _reverse(matrix)
    for damping in (first, *(share for share in DAMPING if share > first)):
        matrix.diagonal().copy_((diagonal + damping * diagonal.mean()).flip(0))
        if _cholesky(matrix):
            _invert(matrix)
            _reverse(matrix)
            notes = () if damping == first else (f"damping raised to {damping:g}",)
            return Factor(matrix, dead, notes)
    problem = f"tensor {name}: the Hessian of its inputs is not positive definite, damped by {damping:g}"
    raise ModelError(problem, "calibrate with more or other text")


def _cholesky(matrix: torch.Tensor) -> bool:
    """Write L of ``matrix`` = L Lᵀ into its lower triangle, with L's diagonal blocks replaced by their inverses.

    It goes panel by panel, and updates each by one product. Returns False, with the matrix restored, if the matrix is
    not positive definite.
    """
    corners: list[torch.Tensor] = []
    for start, stop in _panels(len(matrix)):
        panel, corner = matrix[start:, start:stop], matrix[start:stop, start:stop]
        corners.append(corner.clone())
        eye = torch.eye(stop - start, dtype=matrix.dtype, device=matrix.device)
        panel.addmm_(matrix[start:, :start], matrix[start:stop, :start].T, alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(corner)
        if int(failed) or not bool(torch.isfinite(lower.diagonal()).all()):
            _restore(matrix, corners)
            return False
        corner.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        matrix[stop:, start:stop] = matrix[stop:, start:stop] @ corner.T
    return True


def _invert(matrix: torch.Tensor) -> None:
    """Write L⁻¹ into the lower triangle, from the result of ``_cholesky``, and zeros above it.

    For the next rows a..b, L⁻¹[a:b, :a] = −(L[a:b, a:b])⁻¹ · L[a:b, :a] · L⁻¹[:a, :a], whose last factor is triangular.
    """
    matrix.tril_()
    for start, stop in _panels(len(matrix)):
        rows = (matrix[start:stop, start:stop] @ matrix[start:stop, :start]).neg_()
        step = max(PANEL, -(-start // 6))
        for left in range(0, start, step):
            right = min(left + step, start)
            matrix[start:stop, left:right] = rows[:, left:] @ matrix[left:start, left:right]


def _panels(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + PANEL, size)) for start in range(0, size, PANEL))


def _restore(matrix: torch.Tensor, corners: list[torch.Tensor]) -> None:
    """Restore the symmetric matrix from the saved corners of its panels and the entries to the right of them."""
    for corner, (start, stop) in zip(corners, _panels(len(matrix)), strict=False):
        matrix[start:stop, start:stop] = corner
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T


def _reverse(matrix: torch.Tensor) -> None:
    """Reverse the order of rows and of columns in place, by reversing the memory."""
    flat = matrix.view(-1)
    size = flat.numel()
    for start in range(0, size // 2, CHUNK):
        stop = min(start + CHUNK, size // 2)
        head, tail = flat[start:stop], flat[size - stop : size - start]
        reversed_head = head.flip(0)
        head.copy_(tail.flip(0))
        tail.copy_(reversed_head)
