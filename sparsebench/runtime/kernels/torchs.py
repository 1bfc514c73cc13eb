"""Sparse layers by torch's own kernels: its CSR on a CPU without a compiler, and 2:4 on a GPU (not yet run on one)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from sparsebench.errors import UnsupportedError

TOKENS = 32
"""Tokens multiplied at a time: more at once are slower each."""
CAPABILITY = (8, 0)
"""Ampere: the first with sparse tensor cores."""
DENSE_ROWS = 8
"""Tokens that the kernels divide by."""
MULTIPLE = 64
"""Rows and columns that the kernels divide by, for 16-bit values."""


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


class SemiLinear(nn.Module):
    """The linear layer of a 2:4 matrix, compressed on the ``device`` by cuSPARSELt, whose product is called by itself.

    torch's tensor of this kind cannot be moved while gradients are off, and costs nine times as long to call. The weight's shape
    and dtype are told on the meta device.
    """

    layout = "2:4 semi-structured"
    instructions = "cusparselt"
    packed: torch.Tensor
    weight: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor, device: str) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.nonzeros = int((weight != 0).sum())
        self.register_parameter("bias", None)
        self.register_buffer("packed", torch._cslt_compress(weight.to(device)), persistent=False)
        self.weight = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        self.fastest: dict[int, int] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out) on the GPU: (W xᵀ)ᵀ, tokens filled up to a multiple of ``DENSE_ROWS``."""
        flat = x.reshape(-1, self.in_features)
        tokens = flat.shape[0]
        padded = nn.functional.pad(flat, (0, 0, 0, -tokens % DENSE_ROWS)).t()
        if padded.shape[1] not in self.fastest:  # which of its algorithms is fastest is asked once, while warming up
            self.fastest[padded.shape[1]] = int(
                torch._cslt_sparse_mm_search(self.packed, padded, transpose_result=True)
            )
        chosen = self.fastest[padded.shape[1]]
        found = torch._cslt_sparse_mm(self.packed, padded, bias=self.bias, transpose_result=True, alg_id=chosen)[
            :tokens
        ]
        return found.reshape(*x.shape[:-1], self.out_features)


def semi_structured(weight: torch.Tensor, device: str = "cuda") -> Any:
    """A layer for ``weight`` (out, in), or None where it is not 2:4. Raises UnsupportedError on an older GPU, or without
    cuSPARSELt."""
    rows, cols = weight.shape
    if rows % MULTIPLE or cols % MULTIPLE or weight.dtype not in (torch.bfloat16, torch.float16):
        return None
    if bool(((weight.view(rows, cols // 4, 4) != 0).sum(-1) > 2).any()):
        return None
    if torch.cuda.get_device_capability() < CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        raise UnsupportedError(f"2:4 needs a GPU of capability 8.0, this one has {found}", "measure it on a CPU")
    if not torch.backends.cusparselt.is_available():
        raise UnsupportedError(
            "2:4 needs cuSPARSELt, which this torch was built without", "install NVIDIA's wheel of torch"
        )
    return SemiLinear(weight, device)
