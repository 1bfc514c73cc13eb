"""The settings of a quantized variant, and the grids that weights are rounded to.

    symmetric:   step = max|w| / ((2ᵇ - 1) / 2),       value = round(w / step)
    asymmetric:  step = (max w - min w) / (2ᵇ - 1),    value = round(w / step) + zero,   zero = lowest + round(-min w / step)

The range from min w to max w is extended to contain 0, so that a weight of zero stays exactly zero on either grid.
Values are clamped to -2ᵇ⁻¹ … 2ᵇ⁻¹ - 1. The step is first rounded to the checkpoint's precision, in which it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sparsebench.errors import UserError
from sparsebench.models.quantized import Codes, Scheme, groups_of

if TYPE_CHECKING:
    import torch

Bits = Literal["int8", "int8-dynamic", "int4"]
BITS: tuple[Bits, ...] = ("int8", "int8-dynamic", "int4")
GROUP = 64
"""The default number of columns that share a scale in int4."""
CHUNK = 1 << 23
"""The number of weights rounded at once."""


@dataclass(frozen=True)
class Quantize:
    """The settings of one quantized variant of a model.

    ``bits`` is int8, int8-dynamic (activations are quantized at run time) or int4. In int4 ``group`` columns share a
    scale (default GROUP), in int8 a whole row. ``rounding`` is nearest, or gptq, which needs calibration text.
    ``damping`` is the share of its mean diagonal that gptq adds to the Hessian's diagonal. With ``sparsity`` above 0
    gptq's sweep is SparseGPT's: it prunes in ``pattern`` and rounds the weights that stay, column by column.
    """

    bits: str = "int8"
    group: int | None = None
    rounding: str = "nearest"
    symmetric: bool = True
    damping: float = 0.01
    sparsity: float = 0.0
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        small = self.bits == "int4"
        if small and self.group is None:
            object.__setattr__(self, "group", GROUP)
        prunes = self.sparsity > 0 or self.pattern != "unstructured"
        problems = {
            f"bits: {self.bits}": self.bits not in BITS and "int8, int8-dynamic or int4",
            f"rounding: {self.rounding}": self.rounding not in ("nearest", "gptq") and "nearest or gptq",
            f"group: {self.group}": (
                (small and (self.group or 0) < 1 and "a number of columns, such as 64")
                or (not small and self.group is not None and "int8 has one scale a row: leave group out")
            ),
            f"damping: {self.damping}": self.damping <= 0 and "a share above 0, such as 0.01",
            f"sparsity: {self.sparsity}": (
                (not 0 <= self.sparsity <= 1 and "a share from 0 to 1")
                or (prunes and self.rounding != "gptq" and "only gptq prunes and rounds in one sweep")
            ),
        }
        for what, wanted in problems.items():
            if wanted:
                raise UserError(f"quantize: {what}", wanted)

    @property
    def scheme(self) -> Scheme:
        """The format in which the weights are stored."""
        return Scheme(4 if self.bits == "int4" else 8, self.group, self.symmetric, self.bits == "int8-dynamic")


@dataclass(frozen=True)
class Grid:
    """The grids of groups of weights: each group's ``step`` and ``zero`` point, and the bounds of its values.

    The bounds are ``low`` and ``high``. All broadcast against weights. ``zero`` is a whole number in floating point, so
    that no tensor needs a cast.
    """

    step: torch.Tensor
    zero: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def values(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the nearest grid values of ``weights``: whole numbers in floating point."""
        return (weights / self.step).round_().add_(self.zero).clamp_(self.low, self.high)

    def weights(self, values: torch.Tensor) -> torch.Tensor:
        """Return the weights that grid values stand for."""
        return (values - self.zero).mul_(self.step)


def grid(weights: torch.Tensor, dim: int, scheme: Scheme, stored: torch.dtype) -> Grid:
    """Return the grid of float32 or float64 weights that share a step along ``dim``; steps are exact in ``stored``."""
    import torch

    high = (1 << (scheme.bits - 1)) - 1
    low, span = -high - 1, 2 * high + 1
    least, most = weights.amin(dim).clamp_(max=0), weights.amax(dim).clamp_(min=0)
    step = torch.maximum(most, -least) * (2 / span) if scheme.symmetric else (most - least) / span
    # A step that is too small for the dtype is raised to the smallest number that it still represents to within a
    # percent (in float16 a subnormal number). Where all weights are zero, any step will do.
    least_step = 2.0**-18 if stored == torch.float16 else torch.finfo(stored).tiny
    step = step.clamp_(min=least_step).to(stored).to(weights.dtype).masked_fill_(most == least, 1)
    zero = torch.zeros_like(step) if scheme.symmetric else ((-least / step).round_() + low).clamp_(low, high)
    return Grid(step, zero, step.new_tensor(low), step.new_tensor(high))


def nearest(weights: torch.Tensor, scheme: Scheme) -> Codes:
    """Round each weight of a matrix (out, in) to the nearest value of its grid, some million weights at a time."""
    import torch

    rows, columns = weights.shape
    groups, width = groups_of(columns, scheme.group), min(scheme.group or columns, columns)
    device = weights.device
    values = torch.empty(rows, columns, dtype=torch.int8, device=device)
    steps = torch.empty(rows, groups, dtype=weights.dtype, device=device)
    zeros = torch.empty(rows, groups, dtype=torch.int8, device=device)
    height = max(1, CHUNK // max(columns, 1))
    for start in range(0, rows, height):
        part = slice(start, start + height)
        # The zeros that pad the last group do not change its grid, since every grid contains 0.
        wide = torch.nn.functional.pad(weights[part].float(), (0, groups * width - columns)).unflatten(
            1, (groups, width)
        )
        found = grid(wide, 2, scheme, weights.dtype)
        steps[part], zeros[part] = found.step, found.zero
        spread = Grid(found.step[..., None], found.zero[..., None], found.low, found.high)
        values[part] = spread.values(wide).flatten(1)[:, :columns]
    return Codes(values, steps, None if scheme.symmetric else zeros, scheme.group)
