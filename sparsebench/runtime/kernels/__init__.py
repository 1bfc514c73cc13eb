"""Linear layers whose weights are stored without their zeros, and the kernels that multiply them on a CPU."""

from sparsebench.runtime.kernels.fallback import TorchCsr
from sparsebench.runtime.kernels.linear import Choices, SparseLinear
from sparsebench.runtime.kernels.matrix import Nonzeros, SparseMatrix, from_dense, from_packed
from sparsebench.runtime.kernels.native import LEVELS, Kernels, kernels
from sparsebench.runtime.kernels.speeds import Speeds, layout_for, speeds_here

__all__ = [
    "LEVELS",
    "Choices",
    "Kernels",
    "Nonzeros",
    "SparseLinear",
    "SparseMatrix",
    "Speeds",
    "TorchCsr",
    "from_dense",
    "from_packed",
    "kernels",
    "layout_for",
    "speeds_here",
]  # fmt: skip
