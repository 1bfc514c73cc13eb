"""Linear layers whose weights are stored without zeros, and the CPU kernels that multiply them."""

from sparsebench.runtime.kernels.linear import Choices, SparseLinear
from sparsebench.runtime.kernels.matrix import Kernels, Nonzeros, from_dense, from_packed, kernels
from sparsebench.runtime.kernels.speeds import layout_for, speeds_here
from sparsebench.runtime.kernels.torchs import TorchCsr, semi_structured

__all__ = [
    "Choices", "Kernels", "Nonzeros", "SparseLinear", "TorchCsr", "from_dense", "from_packed", "kernels", "layout_for",
    "semi_structured", "speeds_here",
]  # fmt: skip
