"""From what a layer reads to SparseGPT's factor: U upper triangular with UᵀU = H⁻¹, H the damped Hessian.

With J the reversal of the order of columns and J H J = L Lᵀ (Cholesky), U = J L⁻¹ J. The explicit inverse, which the
published code forms and factorises once more, is never needed; reversing both axes of a matrix is reversing its
memory; and LAPACK works in place. So one in × in matrix is all that is held, the statistics' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebench.errors import ModelError
from sparsebench.sparsify.contract import Layer

if TYPE_CHECKING:
    import torch

    from sparsebench.models.inputs import Inputs

DAMPING = (0.01, 0.1, 1.0, 10.0)
"""Shares of the mean diagonal that are added to it: the published one, then what is tried when Cholesky fails."""
CHUNK = 1 << 22


@dataclass(frozen=True)
class Factor:
    """``lower`` (in, in) is Uᵀ, row-major: its column j is row j of U. ``dead`` (in,) marks inputs that are always zero."""

    lower: torch.Tensor
    dead: torch.Tensor
    notes: tuple[str, ...] = ()


def factorise(inputs: Inputs, name: str, dtype: torch.dtype | None = None) -> Factor:
    """U for H = 2/n · Σ x xᵀ + damping, in ``dtype`` (default float32); a float32 gram is used up, and gone.

    A dead input gets H_jj = 1. Raises ModelError, naming the tensor, for NaN or infinite statistics and where no
    damping up to ten times the mean diagonal makes H positive definite.
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
    for damping in DAMPING:
        matrix.diagonal().copy_((diagonal + damping * diagonal.mean()).flip(0))
        if _invert_cholesky(matrix):
            _reverse(matrix)
            notes = () if damping == DAMPING[0] else (f"damping raised to {damping:g}",)
            return Factor(matrix.tril_(), dead, notes)
        _restore(matrix)
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


def _invert_cholesky(matrix: torch.Tensor) -> bool:
    """L⁻ᵀ into the upper triangle, where ``matrix`` = L Lᵀ; False if it is not positive definite.

    The strictly lower triangle keeps the matrix. LAPACK counts by columns, so its lower triangle is our upper one.
    """
    import torch
    from scipy.linalg import get_lapack_funcs

    columns = matrix.numpy().T
    potrf, trtri = get_lapack_funcs(("potrf", "trtri"), (columns,))
    _, failed = potrf(columns, lower=1, clean=0, overwrite_a=1)
    if failed:
        return False
    _, failed = trtri(columns, lower=1, overwrite_c=1)
    return not failed and bool(torch.isfinite(matrix.diagonal()).all())


def _restore(matrix: torch.Tensor) -> None:
    """The symmetric matrix again, from its strictly lower triangle; the diagonal is left as it is."""
    step = max(1, CHUNK // max(1, matrix.shape[0]))
    for start in range(0, matrix.shape[0], step):
        stop = min(start + step, matrix.shape[0])
        matrix[:start, start:stop] = matrix[start:stop, :start].T
        corner = matrix[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)


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
