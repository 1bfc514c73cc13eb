"""ALPS (Meng et al. 2024): searches the weights of a layer to keep and their values together.

    min ‖X (Ŵ − W)ᵀ‖²   subject to as many zeros in W as asked for;   Ŵ is the dense layer, H = XᵀX + λI

scaled so that H has a unit diagonal. ADMM splits W from its sparse copy D (equation 4 of the paper):

    W  ←  (ŴH − V + ρD) (H + ρI)⁻¹                  V: multipliers
    D  ←  projection of W + V/ρ: the largest stay
    V  ←  V + ρ (W − D)

Every third step ρ grows, by a factor that depends on how much of the support of D has changed, until the support
settles. Ten steps of conjugate gradients then improve the values on that support.

V is ρ(Z − D) with Z = W + V/ρ, and D is the part of Z that stays. So only Z and the mask are kept from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sparsebench.errors import ModelError
from sparsebench.models.replay.gather import InputStatistics
from sparsebench.steps.finite import check_gram, check_range, check_weights
from sparsebench.steps.prune import masks
from sparsebench.steps.prune.contract import Layer, Quota, Solution

DAMPING = 0.01
"""λ, as a share of the mean diagonal of XᵀX."""
PENALTY = 0.1
"""The initial ρ."""
STEPS = 300
"""The most ADMM steps."""
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""(share, factor): ρ grows by the first factor for which at least that share of the support has changed."""
REFINE = 10
"""The number of conjugate-gradient steps on the support that was found."""
SOFTER = 5.0
"""ρ is divided by this as long as it is too large for the support to change at all."""
LEAST_PENALTY = 1e-5
"""Below this ρ nothing holds W to D, and the search stops: a support that has not changed by then will not change."""
PERIOD = 3
"""ρ grows every so many steps."""
SETTLED_AFTER = 30
"""After so many steps a small change of the support counts as none, as in the authors' code."""
SETTLED_SHARE = 3e-4
"""A change of less than this share of the support is small."""
CACHE_BYTES = 256 << 20
"""The most bytes of inverses that are cached."""


@dataclass(frozen=True)
class LeastSquares:
    """The problem shared by layers that read the same inputs: H scaled to a unit diagonal, and its eigenvectors.

    ``hessian`` is (in, in); ``scale`` (in,) is the square root of the diagonal that it was divided by.
    """

    hessian: torch.Tensor
    scale: torch.Tensor
    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor
    inverses: dict[float, torch.Tensor] = field(default_factory=dict)

    def inverse(self, penalty: float) -> torch.Tensor:
        """Return (H + ρI)⁻¹, cached up to CACHE_BYTES: layers and sparsities go through much the same values of ρ."""
        inverse = self.inverses.get(penalty)
        if inverse is None:
            inverse = (self.eigenvectors / (self.eigenvalues + penalty)) @ self.eigenvectors.T
            if (len(self.inverses) + 1) * inverse.nbytes <= CACHE_BYTES:
                self.inverses[penalty] = inverse
        return inverse


def solve(
    layers: Sequence[Layer], quotas: Sequence[Quota], dtype: torch.dtype = torch.float32
) -> list[list[Solution | ModelError]]:
    """Return a solution per quota for each of ``layers``, which read the same inputs; the gram is not changed.

    ``dtype`` is that of the arithmetic. Raises ModelError, naming the tensor, for NaN and infinity.
    """
    check_weights(layers)
    problem = prepare(layers[0].statistics(), layers[0].name, dtype)
    return [[_prune(problem, layer, quota) for quota in quotas] for layer in layers]


def prepare(inputs: InputStatistics, name: str, dtype: torch.dtype) -> LeastSquares:
    """Damp H, scale it to a unit diagonal, and compute its eigenvectors.

    An input that is always zero gets a row of the identity matrix.
    """
    if inputs.gram is None:
        raise ValueError(f"{name}: no gram of what it reads, or used up")
    check_gram(inputs.gram, name)
    hessian = inputs.gram.to(torch.float64, copy=True)
    diagonal = hessian.diagonal()
    diagonal += DAMPING * diagonal.mean()
    diagonal[diagonal == 0] = 1
    scale = diagonal.sqrt()
    hessian.div_(scale).div_(scale[:, None])
    eigenvalues, eigenvectors = torch.linalg.eigh(hessian)
    eigenvalues.clamp_(min=0)
    return LeastSquares(hessian.to(dtype), scale.to(dtype), eigenvalues.to(dtype), eigenvectors.to(dtype))


def _prune(problem: LeastSquares, layer: Layer, quota: Quota) -> Solution | ModelError:
    """Prune one layer to one quota: ADMM for the support, then conjugate gradients for the values.

    Return an error where the weights are beyond the range of the layer's dtype.
    """
    dense = layer.weights.to(problem.hessian.dtype) * problem.scale
    notes = masks.notes(dense.shape, quota.pattern)
    mask = _project(dense, quota, layer)
    kept_count = mask.numel() - int(mask.sum())
    if kept_count in (0, mask.numel()):
        return Solution(layer.weights.masked_fill(mask, 0), notes)
    values, mask, settled = _search(problem, dense, mask, quota, layer)
    if not settled:
        notes += (f"the support still changed after {STEPS} steps",)
    values = _refine(problem, dense, values, mask)
    weights = torch.empty(values.shape, dtype=layer.weights.dtype, device=values.device)
    weights.copy_(values.div_(problem.scale)).masked_fill_(mask, 0)
    try:
        check_range(weights, layer.name)
    except ModelError as error:
        return error
    return Solution(weights, notes)


def _project(weights: torch.Tensor, quota: Quota, layer: Layer) -> torch.Tensor:
    """Return the mask that changes ``weights`` least: the smallest squares, or blocks of smallest sums of squares."""
    (choice,) = masks.choose(weights.square(), [quota], layer.name, layer.weights)
    return choice.mask


def _search(
    problem: LeastSquares, dense: torch.Tensor, start: torch.Tensor, quota: Quota, layer: Layer
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Run ADMM from the mask ``start``; return D, the mask of its zeros, and whether the mask settled in time."""
    kept_count = start.numel() - int(start.sum())
    penalty, moved = PENALTY, False
    last_penalty, inverse = penalty, problem.inverse(penalty)
    z, mask = dense.masked_fill(start, 0), start
    before = start
    for step in range(1, STEPS + 1):
        # Removed entries have V = last_penalty·Z (``last_penalty`` is the ρ of the step that made Z); the others have D = Z.
        signs = torch.where(mask, z.new_tensor(-last_penalty), z.new_tensor(penalty))
        right = signs.mul_(z).sub_(dense, alpha=penalty)
        z = z.mul_(mask).mul_(last_penalty / penalty).add_(dense).addmm_(right, inverse)
        last_penalty, mask = penalty, _project(z, quota, layer)
        if step % PERIOD:
            continue
        changed = int((mask ^ before).sum())
        before = mask
        settled = changed == 0 or (step > SETTLED_AFTER and changed < SETTLED_SHARE * kept_count)
        growth = next(factor for share, factor in GROWTH if changed >= share * kept_count)
        if growth == GROWTH[-1][1] and not moved:
            growth = 1 / SOFTER
        moved = moved or growth > 1
        if (settled and moved) or penalty < LEAST_PENALTY:
            return z.masked_fill_(mask, 0), mask, True
        penalty *= growth
        inverse = problem.inverse(penalty)
        if not moved and changed:
            z, mask, before = dense.masked_fill(start, 0), start, start
    return z.masked_fill_(mask, 0), mask, False


def _refine(problem: LeastSquares, dense: torch.Tensor, start: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run conjugate gradients on the support, all rows at once, and keep the rows whose error falls.

    H has a unit diagonal, so the steps are already preconditioned by the diagonal.
    """
    refined = start.clone()
    gradient = (dense - start) @ problem.hessian
    error = ((dense - start) * gradient).sum(1)
    residual = gradient.masked_fill_(mask, 0)
    direction = residual.clone()
    squares = residual.square().sum(1)
    for _ in range(REFINE):
        image = (direction @ problem.hessian).masked_fill_(mask, 0)
        step_length = _row_ratio(squares, (direction * image).sum(1))
        refined.addcmul_(direction, step_length)
        residual.addcmul_(image, step_length, value=-1)
        last_squares, squares = squares, residual.square().sum(1)
        direction.mul_(_row_ratio(squares, last_squares)).add_(residual)
    difference = dense - refined
    better = ((difference @ problem.hessian) * difference).sum(1) < error
    return torch.where(better[:, None], refined, start)


def _row_ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Return the ratio of each row as a column; 0 where the denominator is not positive."""
    return (numerator / denominator).nan_to_num_(0, 0, 0).masked_fill_(denominator <= 0, 0)[:, None]
