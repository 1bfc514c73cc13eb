"""Without a compiler: torch's own CSR, which on a CPU is float32 with 32-bit indices, and slower."""

from __future__ import annotations

import warnings

import torch
from torch import nn

TOKENS = 32
"""Tokens multiplied at a time: more at once are slower each."""


class TorchCsr(nn.Module):
    """The same product as ``SparseLinear`` through ``torch.sparse_csr_tensor``, values widened to float32."""

    layout = "torch-csr"
    instructions = ""
    crow: torch.Tensor
    col: torch.Tensor
    values: torch.Tensor
    weight: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        present = weight != 0
        self.nonzeros = int(present.sum())
        ends = present.sum(1).cumsum(0)
        # Tensors of their own: those of a sparse tensor are views that keep it, and its 64-bit indices, alive.
        self.register_buffer("crow", torch.cat([ends.new_zeros(1), ends]).to(torch.int32), persistent=False)
        self.register_buffer("col", present.nonzero()[:, 1].to(torch.int32), persistent=False)
        self.register_buffer("values", weight[present].float(), persistent=False)
        self.register_parameter("bias", bias)
        self.weight = torch.empty(weight.shape, dtype=weight.dtype, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out) in x's dtype, multiplied in float32."""
        flat = x.reshape(-1, self.in_features).float()
        matrix = self.matrix()
        # One token by `mv`; `F.linear` on CSR is 2 to 10 times slower than this.
        parts = (
            [matrix.mv(flat[0])[None]]
            if len(flat) == 1
            else [(matrix @ p.T.contiguous()).T for p in flat.split(TOKENS)]
        )
        found = torch.cat(parts) if self.bias is None else torch.cat(parts) + self.bias.float()
        return found.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def matrix(self) -> torch.Tensor:
        """torch's view of the three arrays, made anew so that nothing else keeps them."""
        shape = (self.out_features, self.in_features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's CSR calls itself a beta, once
            return torch.sparse_csr_tensor(self.crow, self.col, self.values, shape, check_invariants=False)
