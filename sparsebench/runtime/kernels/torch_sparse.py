"""Sparse layers by torch's own kernels: its CSR on a CPU without a compiler, and 2:4 on a GPU (not yet run on one)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from sparsebench.errors import UnsupportedError

TOKENS_PER_PRODUCT = 32
"""Tokens multiplied at a time: with more at once each takes longer."""
LEAST_CAPABILITY = (8, 0)
"""The compute capability of Ampere, the first GPUs with sparse tensor cores."""
TOKEN_MULTIPLE = 8
"""The kernels need a multiple of this many tokens."""
SIZE_MULTIPLE = 64
"""The kernels need rows and columns in multiples of this, for 16-bit values."""


class TorchCsr(nn.Module):
    """The product of ``KernelLinear`` by ``torch.sparse_csr_tensor``, with values widened to float32."""

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
        # Separate tensors: a sparse tensor's own are views that keep it, and its 64-bit indices, alive.
        self.register_buffer("crow", torch.cat([ends.new_zeros(1), ends]).to(torch.int32), persistent=False)
        self.register_buffer("col", present.nonzero()[:, 1].to(torch.int32), persistent=False)
        self.register_buffer("values", weight[present].float(), persistent=False)
        self.register_parameter("bias", bias)
        self.weight = torch.empty(weight.shape, dtype=weight.dtype, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (…, in) to (…, out) in float32; the result has x's dtype."""
        flat = x.reshape(-1, self.in_features).float()
        matrix = self.matrix()
        # One token is multiplied by `mv`; `F.linear` on CSR is 2 to 10 times slower than this.
        if len(flat) == 1:
            product = matrix.mv(flat[0])[None]
        else:
            product = torch.cat([(matrix @ tokens.T.contiguous()).T for tokens in flat.split(TOKENS_PER_PRODUCT)])
        if self.bias is not None:
            product = product + self.bias.float()
        return product.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def matrix(self) -> torch.Tensor:
        """Return torch's CSR view of the three arrays, made anew so that nothing else keeps them alive."""
        shape = (self.out_features, self.in_features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns once that CSR is in beta
            return torch.sparse_csr_tensor(self.crow, self.col, self.values, shape, check_invariants=False)


class SemiLinear(nn.Module):
    """The linear layer of a 2:4 matrix, compressed on ``device`` by cuSPARSELt, whose product is called directly.

    torch's own 2:4 tensor cannot be moved while gradients are off, and takes nine times as long to call. ``weight`` has
    only its shape and dtype, on the meta device.
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
        self.fastest_algorithms: dict[int, int] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (…, in) to (…, out) on the GPU: (W xᵀ)ᵀ, with tokens padded to a multiple of ``TOKEN_MULTIPLE``."""
        flat = x.reshape(-1, self.in_features)
        padding = -len(flat) % TOKEN_MULTIPLE  # where it is 0, pad would copy all the same
        padded = (nn.functional.pad(flat, (0, 0, 0, padding)) if padding else flat).t()
        tokens = padded.shape[1]
        if tokens not in self.fastest_algorithms:  # cuSPARSELt searches once, during warm-up
            searched = torch._cslt_sparse_mm_search(self.packed, padded, transpose_result=True)
            self.fastest_algorithms[tokens] = int(searched)
        algorithm = self.fastest_algorithms[tokens]
        product = torch._cslt_sparse_mm(self.packed, padded, bias=self.bias, transpose_result=True, alg_id=algorithm)
        return product[: len(flat)].reshape(*x.shape[:-1], self.out_features)


def semi_structured(weight: torch.Tensor, device: str = "cuda") -> Any:
    """Return a layer for ``weight`` (out, in), or None where the kernels cannot take it as 2:4.

    Raises UnsupportedError for a 2:4 weight on a GPU before Ampere, or without cuSPARSELt.
    """
    rows, cols = weight.shape
    if rows % SIZE_MULTIPLE or cols % SIZE_MULTIPLE or weight.dtype not in (torch.bfloat16, torch.float16):
        return None
    if bool(((weight.view(rows, cols // 4, 4) != 0).sum(-1) > 2).any()):
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        needed, present = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, capability))
        raise UnsupportedError(f"2:4 needs a GPU of capability {needed}, this one has {present}", "measure it on a CPU")
    if not torch.backends.cusparselt.is_available():
        raise UnsupportedError(
            "2:4 needs cuSPARSELt, which this torch was built without", "install NVIDIA's wheel of torch"
        )
    return SemiLinear(weight, device)
