"""Our own engine: linear layers without zeros. C++ kernels on a CPU; cuSPARSELt and Triton on a GPU (untested)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from sparsebench.errors import ModelError, StorageError, UnsupportedError, first_line, out_of_memory
from sparsebench.models.files import precision
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.build import StoredWeights, build_model
from sparsebench.models.modules.experts import still_fused
from sparsebench.models.shape import topology
from sparsebench.models.shape.topology import View
from sparsebench.native import Missing
from sparsebench.runtime.engines.base import DENSE, SavedModel, check_dtype
from sparsebench.runtime.engines.hf import Plain
from sparsebench.runtime.kernels import (
    Choices,
    Kernels,
    Nonzeros,
    SparseLinear,
    TorchCsr,
    from_dense,
    from_packed,
    kernels,
    layout_for,
    semi_structured,
    speeds_here,
)  # fmt: skip
from sparsebench.runtime.parity import Shorten, beside_rounding
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt
from sparsebench.storage import is_packed
from sparsebench.storage.packed import PackedCheckpoint

FORCED = "bitmask"
"""The layout of a layer with few zeros that must not stay dense: the one that stores least besides the values."""
WAYS = {"dense": "dense tiles", "sparse": "sparse kernel"}
"""How sparse layers multiply several tokens, as results name it."""


class Sparse:
    """One process; a layer is stored sparse where enough of its weights are zero, the others stay torch's."""

    forced = False

    def __init__(self) -> None:
        self.kernels: Kernels | Missing = Missing("not started")
        self.cuda = self.bitmask = False
        self.choices = Choices()
        # Names and numbers of the last model only, not its layers: it must be freed before the next one is loaded.
        self.layers: Counter[tuple[str, str]] = Counter()
        self.kinds: Counter[tuple[Any, ...]] = Counter()

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Compile or load the kernels and time their layouts; notes say what is used instead where there are none."""
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            reason = _no_triton()
            self.bitmask = not reason
            others = f"others stay dense, for {reason}" if reason else "others by Triton over a bitmask"
            return (f"2:4 layers by cuSPARSELt, {others}; nobody has tried this on a GPU yet",)
        self.kernels = kernels()
        if isinstance(self.kernels, Missing):
            return (f"no compiled kernels, so torch's CSR in float32, which is slower: {self.kernels.reason}",)
        # The layouts are timed now, unless they were before, and not while a model's loading is timed.
        speeds_here(self.kernels, torch.bfloat16, torch.bfloat16)
        return self.kernels.notes

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Plain:
        """Load the model with sparse layers; a ``baseline`` is the plain dense model, whatever its zeros."""
        if not baseline:
            return Plain(self._assembled(source))
        packed = is_packed(source.folder)
        model: Any = build_model(opened(source), source.family, source.dtype) if packed else source.plain()
        return Plain(model.to("cuda" if self.cuda else "cpu"))

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare with the same weights, zeros included, multiplied by torch.

        Raises UnsupportedError for a dtype without kernels, ParityError above the tolerance.
        """
        weights = opened(source)
        self._check_dtype(source, weights)

        def plain(dtype: str, cut: Shorten) -> Any:
            return build_model(weights, source.family, dtype, cut)

        sparse, wrong = partial(self._assembled, source), "a sparse kernel is wrong for it"
        try:
            parity = beside_rounding(plain, source.dtype, sparse, source.family, prompt, wrong)
        finally:
            self.choices.faster.clear()  # choices for the few tokens of parity do not hold for the workload
        return replace(parity, wraps_only=not self.kinds)

    @property
    def kernel(self) -> str:
        """Such as ``runs avx512-bf16 ×210 (attention ×120, mlp ×90), dense torch linear ×1 (head); several tokens: …``.

        The part after the semicolon says how sparse layers multiplied several tokens at once.
        """
        roles: dict[str, Counter[str]] = {}
        for (layer, role), count in sorted(self.layers.items()):
            roles.setdefault(layer, Counter())[role] = count
        dense_last = sorted(roles, key=lambda layer: (layer.startswith("dense torch"), layer))
        parts = [f"{layer} ×{roles[layer].total()} ({_counted(roles[layer])})" for layer in dense_last]
        several = self._several_tokens()
        return ", ".join(parts) + (f"; several tokens: {several}" if several else "")

    def _several_tokens(self) -> str:
        """Say how sparse layers multiplied several tokens: each way with its number of layers."""
        counts: Counter[str] = Counter()
        for kind, count in self.kinds.items():
            ways = {way for key, way in self.choices.faster.items() if key[: len(kind)] == kind}
            if ways:
                counts[" or ".join(WAYS[way] for way in sorted(ways))] += count
        return ", ".join(f"{way} ×{count}" for way, count in counts.items())

    def _assembled(self, source: SavedModel, cut: Callable[[Any], None] = lambda model: None) -> Any:
        weights, replaceable = opened(source), 0
        self._check_dtype(source, weights)

        def sparse_layer(view: View, module: Any, dtype: Any) -> Any:
            nonlocal replaceable
            replaceable += topology.part(weights.tensors[view.tensor], weights.config, source.family).prunable
            return self._sparse_layer(weights, view, module, dtype)

        model: Any = build_model(weights, source.family, source.dtype, cut, sparse_layer)
        if not replaceable:
            raise UnsupportedError(
                f"{weights.config.get('model_type')}: none of its layers is one that the sparse engine can replace",
                "measure it with another engine",
            )
        self._describe(model)
        return model.to("cuda") if self.cuda else model

    def _describe(self, model: Any) -> None:
        """Note what multiplies each of the model's matrices."""
        self.kinds = Counter()
        kernel_of = dict.fromkeys((f"{name}.gate_up_proj" for name in still_fused(model)), "dense torch experts")
        for name, module in model.named_modules():
            if type(module).__name__ in topology.LINEAR_TYPES:
                kernel_of[name] = DENSE
            elif hasattr(module, "layout") and hasattr(module, "nonzeros"):
                kernel_of[name] = f"{module.layout} {module.instructions}".strip() + _narrow(module)
                self.kinds[getattr(module, "kind", (module.layout,))] += 1
        self.layers = Counter((kernel, topology.role(name)) for name, kernel in kernel_of.items())

    def _check_dtype(self, source: SavedModel, weights: StoredWeights) -> None:
        if not self.cuda:  # a GPU's kernels take any dtype
            check_dtype("sparse", precision.resolve(source.dtype, weights.config, weights.tensors))

    def _sparse_layer(self, weights: StoredWeights, view: View, module: Any, dtype: Any) -> Any:
        """Make the layer to replace a linear ``module`` by; None where its zeros do not pay."""
        across = type(module).__name__ == "Conv1D" or view.transposed
        if self.cuda:
            return self._on_gpu(_dense(weights, view, dtype, across))
        if isinstance(self.kernels, Missing):
            weight = _dense(weights, view, dtype, across)
            # torch's CSR takes eight bytes per nonzero, the dense float32 matrix four per weight.
            pays = (weight != 0).sum() * 2 < weight.numel()
            return TorchCsr(weight, None) if pays or self.forced else None
        try:
            nonzeros = _nonzeros(self.kernels, weights, view, dtype, across)
            layout = layout_for(nonzeros, speeds_here(self.kernels, nonzeros.values.dtype, dtype))
            if layout == "dense":
                if not self.forced:
                    return None
                layout = FORCED
            return SparseLinear(self.kernels, nonzeros.laid_out(self.kernels, layout), None, self.choices, dtype)
        except (StorageError, ModelError) as error:
            raise type(error)(f"{view.name}: {error.message}", error.hint) from error

    def _on_gpu(self, weight: Any) -> Any:
        """Return the GPU layer for a matrix (out, in), or None where its zeros do not pay."""
        # Where nearly all weights are zero, a matrix may be 2:4 by chance; a bitmask then reads less than half as much.
        nearly_empty = self.bitmask and int((weight != 0).sum()) * 4 < weight.numel()
        if not nearly_empty and (regular := semi_structured(weight)):
            return regular
        if not self.bitmask or weight.numel() >= 2**31:  # the kernel counts nonzeros in 32 bits
            return None
        from sparsebench.runtime.kernels.bitmask_gpu import BitmaskLinear

        layer = BitmaskLinear(weight, "cuda")
        return layer if layer.pays or self.forced else None


def _no_triton() -> str:
    """Return why Triton cannot compile here, or "". It needs a C compiler and Python's headers besides its package."""
    if find_spec("triton") is None:
        return "there is no triton"
    try:
        from sparsebench.runtime.kernels.bitmask_gpu import FEW, BitmaskLinear

        layer = BitmaskLinear(torch.eye(16, 256, device="cpu", dtype=torch.bfloat16), "cuda")
        for tokens in (1, 2, FEW + 1):  # each is another kernel
            layer(torch.ones(tokens, 256, device="cuda", dtype=torch.bfloat16))
    except Exception as error:  # Triton's own errors have no common class that is documented
        if out_of_memory(error):
            raise
        return f"triton does not compile here ({first_line(error)})"
    return ""


def _counted(roles: Counter[str]) -> str:
    """Return the roles in words: ``head``, or ``attention ×120, mlp ×90``."""
    return ", ".join(roles if len(roles) == 1 else (f"{role} ×{count}" for role, count in sorted(roles.items())))


def opened(source: SavedModel) -> StoredWeights:
    """Open the folder's tensors, packed or dense."""
    return PackedCheckpoint(source.folder) if is_packed(source.folder) else Checkpoint(source.folder)


def _dense(weights: StoredWeights, view: View, dtype: Any, across: bool) -> Any:
    """Load one matrix as (out, in); ``across`` says that it is stored (in, out)."""
    weight = weights.load(view.tensor, view.expert).to(dtype)
    weight = weight if view.rows is None else weight[slice(*view.rows)]
    return weight.t().contiguous() if across else weight


def _nonzeros(kernels: Kernels, weights: StoredWeights, view: View, dtype: Any, across: bool) -> Nonzeros:
    """Return a matrix's nonzeros; a whole packed tensor stored (out, in) is not expanded for that."""
    # bfloat16 weights stay 16 bits wide in float32: the products are the same, and half as many bytes are read.
    held = torch.bfloat16 if weights.tensors[view.tensor].dtype == "BF16" and dtype == torch.float32 else dtype
    whole = not across and view.expert is None and view.rows is None
    kept = weights.kept(view.tensor) if isinstance(weights, PackedCheckpoint) and whole else None
    if kept is None:
        return from_dense(kernels, _dense(weights, view, held, across))
    rows, cols = weights.tensors[view.tensor].shape
    return from_packed(kernels, kept.encoding, kept.index, kept.values.to(held), rows, cols)


def _narrow(layer: Any) -> str:
    """Return text such as `` from bfloat16`` for a layer that stores another dtype than it runs in; else ""."""
    held = getattr(layer, "dtype", layer.weight.dtype)
    return "" if held == layer.weight.dtype else f" from {str(held).removeprefix('torch.')}"
