"""Linear layers whose weights are stored without their zeros, and the kernels that multiply them on a CPU."""

from sparsebench.runtime.kernels.linear import Choices, SparseLinear
from sparsebench.runtime.kernels.matrix import LEVELS, Kernels, Nonzeros, SparseMatrix, from_dense, from_packed, kernels
from sparsebench.runtime.kernels.speeds import layout_for, speeds_here
from sparsebench.runtime.kernels.torchs import TorchCsr, semi_structured

__all__ = [
    "LEVELS", "Choices", "Kernels", "Nonzeros", "SparseLinear", "SparseMatrix", "TorchCsr", "from_dense", "from_packed",
    "kernels", "layout_for", "semi_structured", "speeds_here",
]  # fmt: skip
