"""What quantizing is asked for, and the grids that weights are rounded to.

    symmetric:   step = max|w| / ((2ᵇ - 1) / 2),       value = round(w / step)
    asymmetric:  step = (max w - min w) / (2ᵇ - 1),    value = round(w / step) + zero,   zero = lowest + round(-min w / step)

with 0 between the smallest and the largest w, so that a weight that is zero stays exactly zero on either grid. Values are
clamped to -2ᵇ⁻¹ … 2ᵇ⁻¹ - 1. The step is rounded to the checkpoint's precision first: it is what is stored.
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
"""Columns that share a scale in int4, unless told otherwise."""
CHUNK = 1 << 23
"""Weights rounded together."""


@dataclass(frozen=True)
class Quantize:
    """One quantized version of a model.

    ``bits`` is int8, int8-dynamic (what is multiplied with the weights is quantized as it comes) or int4; ``group`` columns
    share a scale in int4 (default GROUP), a whole row in int8. ``rounding`` is nearest, or gptq, which needs calibration text;
    ``damping`` is the share of the mean diagonal that gptq adds to its Hessian. With ``sparsity`` above 0 gptq's sweep is
    SparseGPT's: it prunes in ``pattern`` and rounds what stays, column by column.
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
        """How it is stored."""
        return Scheme(4 if self.bits == "int4" else 8, self.group, self.symmetric, self.bits == "int8-dynamic")


@dataclass(frozen=True)
class Grid:
    """Where groups of weights may lie: ``step`` and ``zero`` (a whole number) of each, ``low`` and ``high`` its values' bounds.

    All broadcast against weights; ``zero`` is a float so that nothing is cast on the way.
    """

    step: torch.Tensor
    zero: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def values(self, weights: torch.Tensor) -> torch.Tensor:
        """The nearest values, as whole floats."""
        return (weights / self.step).round_().add_(self.zero).clamp_(self.low, self.high)

    def weights(self, values: torch.Tensor) -> torch.Tensor:
        """What values stand for."""
        return (values - self.zero).mul_(self.step)


def grid(weights: torch.Tensor, dim: int, scheme: Scheme, stored: torch.dtype) -> Grid:
    """The grid of ``weights`` (float32 or float64), which share a step along ``dim``; steps are exact in ``stored``."""
    import torch

    high = (1 << (scheme.bits - 1)) - 1
    low, span = -high - 1, 2 * high + 1
    least, most = weights.amin(dim).clamp_(max=0), weights.amax(dim).clamp_(min=0)
    step = torch.maximum(most, -least) * (2 / span) if scheme.symmetric else (most - least) / span
    # Too small for the precision is rounded up to its least number that is still exact to a percent, of float16 a subnormal one;
    # where all is zero any step will do.
    least_step = 2.0**-18 if stored == torch.float16 else torch.finfo(stored).tiny
    step = step.clamp_(min=least_step).to(stored).to(weights.dtype).masked_fill_(most == least, 1)
    zero = torch.zeros_like(step) if scheme.symmetric else ((-least / step).round_() + low).clamp_(low, high)
    return Grid(step, zero, step.new_tensor(low), step.new_tensor(high))


def nearest(weights: torch.Tensor, scheme: Scheme) -> Codes:
    """A matrix (out, in), each weight at the nearest place of its grid; some million weights at a time."""
    import torch

    rows, columns = weights.shape
    groups, width = groups_of(columns, scheme.group), scheme.group or columns
    device = weights.device
    values = torch.empty(rows, columns, dtype=torch.int8, device=device)
    steps = torch.empty(rows, groups, dtype=weights.dtype, device=device)
    zeros = torch.empty(rows, groups, dtype=torch.int8, device=device)
    height = max(1, CHUNK // max(columns, 1))
    for start in range(0, rows, height):
        part = slice(start, start + height)
        # Zeros that fill the last group up are on every grid, and change none.
        wide = torch.nn.functional.pad(weights[part].float(), (0, groups * width - columns)).unflatten(
            1, (groups, width)
        )
        found = grid(wide, 2, scheme, weights.dtype)
        steps[part], zeros[part] = found.step, found.zero
        spread = Grid(found.step[..., None], found.zero[..., None], found.low, found.high)
        values[part] = spread.values(wide).flatten(1)[:, :columns]
    return Codes(values, steps, None if scheme.symmetric else zeros, scheme.group)
