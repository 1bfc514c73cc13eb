"""From what a layer reads to SparseGPT's factor: U upper triangular with UᵀU = H⁻¹, H the damped Hessian.

With J the reversal of the order of columns and J H J = L Lᵀ (Cholesky), U = J L⁻¹ J. The explicit inverse, which the
published code forms and factorises once more, is never needed; reversing both axes of a matrix is reversing its
memory; and both steps work in place. So one in × in matrix is all that is held, the statistics' own. Products of
PyTorch do the work: LAPACK as SciPy brings it has threads of its own, which get in the way of PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebench.errors import ModelError
from sparsebench.steps.prune.contract import Layer

if TYPE_CHECKING:
    import torch

    from sparsebench.models.inputs import InputStatistics

DAMPING = (0.01, 0.1, 1.0, 10.0)
"""Shares of the mean diagonal that are added to it: the published one, then what is tried when Cholesky fails."""
PANEL = 128
"""Columns that are factorised together."""
CHUNK = 1 << 22
"""Entries moved together."""


@dataclass(frozen=True)
class Factor:
    """``upper`` (in, in) is U; ``dead`` (in,) marks inputs that are always zero."""

    upper: torch.Tensor
    dead: torch.Tensor
    notes: tuple[str, ...] = ()


def factorise(
    inputs: InputStatistics, name: str, dtype: torch.dtype | None = None, first: float = DAMPING[0]
) -> Factor:
    """U for H = 2/n · Σ x xᵀ + damping, in ``dtype`` (default float32); a float32 gram is used up, and gone.

    ``first`` is the share of the mean diagonal that is tried before larger ones of DAMPING. A dead input gets H_jj = 1.
    Raises ModelError, naming the tensor, for NaN or infinite statistics and where no damping up to ten times the mean
    diagonal makes H positive definite.
    """
    import torch

    if inputs.gram is None:
        raise ValueError(f"{name}: no gram of what it reads, or used up")
    matrix = inputs.gram.to(dtype or torch.float32).contiguous()
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
    raise ModelError(
        f"tensor {name}: the Hessian of its inputs is not positive definite, damped by {DAMPING[-1]:g}",
        "calibrate with more or other text",
    )


def check_finite(tensor: torch.Tensor, name: str, what: str, hint: str) -> None:
    """Raises ModelError "tensor NAME: WHAT" where an element is NaN or infinite."""
    import torch

    if tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
        raise ModelError(f"tensor {name}: {what}", hint)


def check_weights(layers: Sequence[Layer]) -> None:
    """Raises ModelError, naming the tensor, for NaN and infinite weights."""
    for layer in layers:
        check_finite(layer.weights, layer.name, "NaN or infinite values", "repair or fetch the checkpoint again")


def check_gram(gram: torch.Tensor, name: str) -> None:
    """Raises ModelError, naming the tensor, for NaN and infinite statistics of what it reads."""
    hint = "calibrate in float32 or bfloat16, or with other text"
    check_finite(gram, name, "NaN or infinite activations reach it", hint)


def _cholesky(matrix: torch.Tensor) -> bool:
    """L of ``matrix`` = L Lᵀ into its lower triangle, with the inverses of L's diagonal blocks in place of those.

    Panel by panel, each brought up to date by one product. False, with the matrix as it was, if it is not positive definite.
    """
    import torch

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
    """L⁻¹ into the lower triangle, from what ``_cholesky`` left there; zero above.

    With rows a..b next, L⁻¹[a:b, :a] = −(L[a:b, a:b])⁻¹ · L[a:b, :a] · L⁻¹[:a, :a], whose last factor is triangular.
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
    """The symmetric matrix again, from what lies right of the panels' corners and the first corners themselves."""
    for corner, (start, stop) in zip(corners, _panels(len(matrix)), strict=False):
        matrix[start:stop, start:stop] = corner
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T


def _reverse(matrix: torch.Tensor) -> None:
    """The order of rows and of columns, in place: the memory from its end."""
    flat = matrix.view(-1)
    size = flat.numel()
    for start in range(0, size // 2, CHUNK):
        stop = min(start + CHUNK, size // 2)
        head, tail = flat[start:stop], flat[size - stop : size - start]
        kept = head.flip(0)
        head.copy_(tail.flip(0))
        tail.copy_(kept)
