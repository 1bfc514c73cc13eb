"""Linear layers with quantized weights: expanded to floats for scoring, or multiplied as integers.

The latter use these torch kernels on a CPU. ``_weight_int8pack_mm`` reads one byte per weight and multiplies one token
twice as fast as a dense bfloat16 product. For several tokens it is slower, so these use int8 expanded to the
activations' precision. ``_weight_int4pack_mm_for_cpu`` reads half a byte per weight. Both kernels are fast in bfloat16
only, so activations of another precision are rounded to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.models.files.quantized import Codes, QuantizedCheckpoint
from sparsebench.models.modules.build import Replace
from sparsebench.models.shape.topology import View

INT8_TOKENS = 8
"""Tokens up to which the int8 kernel beats a dense product of expanded weights (Zen 4: about 6 to 10, by shape)."""
INT4_ROWS = 16
"""torch's int4 kernel requires a multiple of this number of rows."""


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b on integers, on a CPU; y has x's dtype. Some models read the shape or dtype of ``weight`` (meta)."""

    kernel: str
    values: torch.Tensor
    scale: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, codes: Codes, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.values.shape
        self.group = codes.group or self.in_features
        self.weight = torch.empty(codes.values.shape, dtype=dtype, device="meta")
        self.register_parameter("bias", None)
        values, scale = self.kernel_layout(codes)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def kernel_layout(self, codes: Codes) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and scales in the kernel's layout."""
        return codes.values, codes.scale[:, 0].contiguous()

    @staticmethod
    def fits(codes: Codes) -> bool:
        """Return whether the kernel takes a matrix of this shape."""
        return True

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply x (tokens, in) with the weights: (tokens, out)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (…, in) to (…, out), in x's dtype; a bias is added in that dtype."""
        y = self.product(x.reshape(-1, self.in_features)).to(x.dtype)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)


class Int8Linear(QuantizedLinear):
    """Weights in int8."""

    kernel = f"int8 torch _weight_int8pack_mm in bfloat16, expanded above {INT8_TOKENS} tokens"

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, out) in bfloat16, or in x's dtype for more than INT8_TOKENS tokens."""
        if len(x) > INT8_TOKENS:
            return F.linear(x, self.values.to(x.dtype)).mul_(self.scale)
        return torch._weight_int8pack_mm(x.bfloat16(), self.values, self.scale.bfloat16())


class Int4Linear(QuantizedLinear):
    """Weights in int4, two to a byte, in groups."""

    kernel = "int4 torch _weight_int4pack_mm_for_cpu in bfloat16"

    @staticmethod
    def fits(codes: Codes) -> bool:
        """Return whether the matrix has whole groups of columns and a multiple of INT4_ROWS rows."""
        rows, columns = codes.values.shape
        return columns % (codes.group or columns) == 0 and rows % INT4_ROWS == 0

    def kernel_layout(self, codes: Codes) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values as torch packs them, and (groups, out, 2) bfloat16: scales, and offsets of 0."""
        scale = codes.scale.T.bfloat16()
        packed = torch._convert_weight_to_int4pack_for_cpu(codes.values.int() + 8, 1)
        return packed, torch.stack((scale, torch.zeros_like(scale)), -1).contiguous()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, out) in bfloat16."""
        return torch._weight_int4pack_mm_for_cpu(x.bfloat16(), self.values, self.group, self.scale)


LAYER_OF_ENCODING: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "int4": Int4Linear}


def _codes(weights: QuantizedCheckpoint, view: View) -> Codes | None:
    """Load the codes of a view of a quantized matrix; None for one that is stored in floats."""
    if view.name not in weights.quantized:
        return None
    codes = weights.codes(view.tensor)
    return codes if view.rows is None else codes.cut(view.rows)


def _float_linear(codes: Codes, dtype: torch.dtype) -> nn.Linear:
    expanded = codes.expanded(dtype)
    linear = nn.Linear(expanded.shape[1], expanded.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(expanded, requires_grad=False)
    return linear


def float_layers(weights: QuantizedCheckpoint) -> Replace:
    """Return a ``Replace`` for ``build_model``: float layers in the dtype to run in."""

    def replace(view: View, module: Any, dtype: torch.dtype) -> nn.Module | None:
        codes = _codes(weights, view)
        return None if codes is None else _float_linear(codes, dtype)

    return replace


def integer_layers(weights: QuantizedCheckpoint) -> Replace:
    """Return a ``Replace`` for ``build_model``: layers that multiply integers, or floats for shapes without a kernel."""
    layer = LAYER_OF_ENCODING[weights.scheme.encoding]

    def replace(view: View, module: Any, dtype: torch.dtype) -> nn.Module | None:
        codes = _codes(weights, view)
        if codes is None:
            return None
        return layer(codes, dtype) if layer.fits(codes) else _float_linear(codes, dtype)

    return replace
