"""2:4 on a GPU through torch's semi-structured tensors. Written to torch's documentation; not yet run on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparsebench.errors import UnsupportedError

CAPABILITY = (8, 0)
"""Ampere: the first with sparse tensor cores."""
MULTIPLE = 64
"""Rows and columns that the kernels divide by, for 16-bit values."""


class SemiLinear(nn.Module):
    """The linear layer of a 2:4 matrix."""

    layout = "2:4 semi-structured"
    instructions = "cuda"
    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.nonzeros = int((weight != 0).sum())
        self.register_parameter("bias", None)
        self.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.cuda()), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out) on the GPU."""
        return nn.functional.linear(x, self.weight, self.bias)


def semi_structured(weight: torch.Tensor) -> Any:
    """A layer for ``weight`` (out, in), or None where it is not 2:4. Raises UnsupportedError on an older GPU."""
    rows, cols = weight.shape
    if rows % MULTIPLE or cols % MULTIPLE or weight.dtype not in (torch.bfloat16, torch.float16):
        return None
    if bool(((weight.view(rows, cols // 4, 4) != 0).sum(-1) > 2).any()):
        return None
    if torch.cuda.get_device_capability() < CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        raise UnsupportedError(f"2:4 needs a GPU of capability 8.0, this one has {found}", "measure it on a CPU")
    return SemiLinear(weight)
