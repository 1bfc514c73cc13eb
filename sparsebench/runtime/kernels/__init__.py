"""Linear layers on our own kernels for CPUs, whose weights are stored without zeros or in few bits."""

from sparsebench.runtime.kernels.linear import Autotuner, KernelLinear
from sparsebench.runtime.kernels.matrix import Kernels, Matrix, kernels
from sparsebench.runtime.kernels.torch_sparse import TorchCsr, semi_structured

__all__ = ["Autotuner", "KernelLinear", "Kernels", "Matrix", "TorchCsr", "kernels", "semi_structured"]
