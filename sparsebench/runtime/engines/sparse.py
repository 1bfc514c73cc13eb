"""Our own engine: linear layers without zeros. C++ kernels on a CPU; cuSPARSELt and Triton on a GPU (untested)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from sparsebench.errors import ModelError, StorageError, UnsupportedError, first_line, out_of_memory
from sparsebench.models.files import precision
from sparsebench.models.files.checkpoint import dtype_name, torch_dtype
from sparsebench.models.files.quantized import QuantizedCheckpoint, open_checkpoint
from sparsebench.models.modules.build import StoredWeights, build_model
from sparsebench.models.modules.experts import still_fused
from sparsebench.models.modules.quantized_linear import float_layers
from sparsebench.models.shape import topology
from sparsebench.models.shape.topology import View
from sparsebench.native import Missing
from sparsebench.runtime.engines.base import DENSE, SavedModel, check_dtype
from sparsebench.runtime.engines.hf import PlainModel
from sparsebench.runtime.kernels import (
    Autotuner,
    KernelLinear,
    Kernels,
    Matrix,
    TorchCsr,
    attention,
    decoder,
    kernels,
    semi_structured,
)
from sparsebench.runtime.kernels.linear import ALGORITHMS, MAX_DECODE_TOKENS, TILING_LEVELS
from sparsebench.runtime.kernels.matrix import (
    ACTIVATION_GROUP,
    MASK_WORD_COLUMNS,
    bitmask,
    bitmask_is_smaller,
    dense,
    integers,
    integers_to_bitmask,
    is_worth_bitmask,
    round_to_bytes,
    to_bitmask,
)
from sparsebench.runtime.parity import PlainOutputs, shorten
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt
from sparsebench.storage import is_packed
from sparsebench.storage.packed import PackedCheckpoint

ROUNDED = f"up to {MAX_DECODE_TOKENS} tokens with inputs in int8, a scale for every {ACTIVATION_GROUP}"
"""The arithmetic of integer layers, as results name it."""
INTEGERS = ("int8", "int4")


class Sparse:
    """One process; a layer is stored sparse where enough of its weights are zero.

    Others stay torch's, but for those in bfloat16 where the CPU multiplies tiles of it.
    """

    forced = False

    def __init__(self) -> None:
        self.kernels: Kernels | Missing = Missing("not started")
        self.cuda = self.has_triton = False
        self.tuner = Autotuner()
        self.single_token_steps: Counter[int] = Counter()
        # Names and numbers of the last model only, not its layers: it must be freed before the next one is loaded.
        self.counts_by_kernel: Counter[tuple[str, str]] = Counter()
        self.rounded = ""
        self.timed_kinds: Counter[tuple[Any, ...]] = Counter()

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Compile or load the kernels; notes say what is used instead where there are none."""
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            reason = _no_triton()
            self.has_triton = not reason
            others = f"others stay dense, for {reason}" if reason else "others by Triton over a bitmask"
            return (f"2:4 layers by cuSPARSELt, {others}; nobody has tried this on a GPU yet",)
        self.kernels = kernels()
        if isinstance(self.kernels, Missing):
            return (f"no compiled kernels, so torch's CSR in float32, which is slower: {self.kernels.reason}",)
        return self.kernels.notes

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> PlainModel:
        """Load the model with sparse layers; a ``baseline`` is the plain dense model, whatever its zeros."""
        if not baseline:
            return PlainModel(self._build_sparse_model(source, self._open_supported(source)))
        packed = is_packed(source.folder)
        model: Any = build_model(open_weights(source), source.family, source.dtype) if packed else source.load_plain()
        return PlainModel(model.to("cuda" if self.cuda else "cpu"))

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare with the same weights, zeros included, multiplied by torch.

        Raises UnsupportedError for a dtype without kernels, ParityError above the tolerance.
        """
        weights = self._open_supported(source)
        quantized = isinstance(weights, QuantizedCheckpoint)

        def plain(dtype: str) -> Any:
            if not isinstance(weights, QuantizedCheckpoint):
                return build_model(weights, source.family, dtype, shorten)
            model = build_model(weights, source.family, dtype, shorten, float_layers(weights))
            if dtype != "float32":
                for module in model.modules():
                    if type(module).__name__ in topology.LINEAR_TYPES:
                        module.register_forward_pre_hook(lambda _, given: (round_to_bytes(given[0]), *given[1:]))
            return model

        try:
            torch_products = PlainOutputs.of(plain, "bfloat16" if quantized else source.dtype, source.family, prompt)
            sparse = self._build_sparse_model(source, weights, shorten)
            parity = torch_products.check(sparse, source.family, prompt, "a kernel is wrong for it")
        finally:
            self.tuner.fastest.clear()  # what is fastest for parity's few tokens does not hold for the workload
        return replace(parity, wraps_only=not self.timed_kinds)

    @property
    def kernel(self) -> str:
        """Such as ``int8 bitmask avx512-vnni ×210 (attention ×120, mlp ×90), dense torch linear ×1 (head); …``.

        The part after the semicolon says with which arithmetic layers multiplied a few tokens, and how many at once.
        """
        roles: dict[str, Counter[str]] = {}
        for (layer, role), count in sorted(self.counts_by_kernel.items()):
            roles.setdefault(layer, Counter())[role] = count
        dense_last = sorted(roles, key=lambda layer: (layer.startswith("dense torch"), layer))
        parts = [f"{layer} ×{roles[layer].total()} ({_counted(roles[layer])})" for layer in dense_last]
        single = "".join(f"single tokens: {blocks} blocks in one call" for blocks in self.single_token_steps)
        return "; ".join(filter(None, (", ".join(parts), self.rounded, single, self._many_tokens())))

    def _many_tokens(self) -> str:
        """Say what multiplied more than MAX_DECODE_TOKENS tokens: each algorithm with its number of layers."""
        counts: Counter[str] = Counter()
        for kind, count in self.timed_kinds.items():
            algorithms = {name for key, name in self.tuner.fastest.items() if key[: len(kind)] == kind}
            if algorithms:
                counts[" or ".join(ALGORITHMS[name].label for name in sorted(algorithms))] += count
        labels = ", ".join(f"{label} ×{n}" for label, n in counts.items())
        return f"more than {MAX_DECODE_TOKENS} tokens: {labels}" if labels else ""

    def _build_sparse_model(
        self, source: SavedModel, weights: StoredWeights, cut: Callable[[Any], object] = lambda model: None
    ) -> Any:
        replaceable = 0
        self.single_token_steps.clear()

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
        if isinstance(self.kernels, Kernels):
            if self.kernels.level in TILING_LEVELS:  # elsewhere torch's product of dense layers is as fast
                self._replace_dense(self.kernels, model)
            if any(isinstance(layer, KernelLinear) for layer in model.modules()):
                attention.install(model)
            decoder.install(model, self.kernels, self.single_token_steps)
        self._describe(model)
        return model.to("cuda") if self.cuda else model

    def _replace_dense(self, kernels: Kernels, model: Any) -> None:
        """Multiply by our kernels what is left in bfloat16, such as a tied head or layers whose few zeros do not pay."""
        for name, layer in list(model.named_modules()):
            if type(layer) is not torch.nn.Linear or layer.weight.dtype != torch.bfloat16 or not layer.weight.numel():
                continue
            replacement = KernelLinear(kernels, dense(layer.weight.detach()), self.tuner)
            replacement.register_parameter("bias", layer._parameters.get("bias"))
            model.set_submodule(name, replacement)

    def _describe(self, model: Any) -> None:
        """Note what multiplies each of the model's matrices."""
        self.timed_kinds, self.rounded = Counter(), ""
        kernel_of = dict.fromkeys((f"{name}.gate_up_proj" for name in still_fused(model)), "dense torch experts")
        for name, module in model.named_modules():
            if type(module).__name__ in topology.LINEAR_TYPES:
                kernel_of[name] = DENSE
            elif hasattr(module, "layout") and hasattr(module, "nonzeros"):
                held = getattr(module, "matrix_type", "")
                kernel_of[name] = f"{held} {module.layout} {module.instructions}".strip()
                self.timed_kinds[getattr(module, "kind", (module.layout,))] += 1
                self.rounded = ROUNDED if held in INTEGERS else self.rounded
        self.counts_by_kernel = Counter((kernel, topology.role(name)) for name, kernel in kernel_of.items())

    def _open_supported(self, source: SavedModel) -> StoredWeights:
        """Open the folder's tensors. Raises UnsupportedError for a dtype without kernels."""
        weights = open_weights(source)
        if not self.cuda:  # a GPU's kernels take any dtype
            check_dtype("sparse", precision.resolve(source.dtype, weights.config, weights.tensors))
        return weights

    def _sparse_layer(self, weights: StoredWeights, view: View, module: Any, dtype: Any) -> Any:
        """Make the layer to replace a linear ``module`` by; None where its zeros do not pay."""
        transposed = type(module).__name__ == "Conv1D" or view.transposed
        if self.cuda:
            return self._gpu_layer(_load_floats(weights, view, dtype, transposed))
        if isinstance(self.kernels, Missing):
            weight = _load_floats(weights, view, dtype, transposed)
            # torch's CSR takes eight bytes per nonzero, the dense float32 matrix four per weight.
            fewer_bytes = (weight != 0).sum() * 2 < weight.numel()
            return TorchCsr(weight, None) if fewer_bytes or self.forced else None
        try:
            matrix = _matrix(weights, view, dtype, transposed)
        except (StorageError, ModelError) as error:
            raise type(error)(f"{view.name}: {error.message}", error.hint) from error
        if (
            matrix.layout == "dense"
            and matrix.value_type not in INTEGERS
            and not (self.forced and matrix.values.numel())
        ):
            return None
        return KernelLinear(self.kernels, matrix, self.tuner, dtype)

    def _gpu_layer(self, weight: Any) -> Any:
        """Return the GPU layer for a matrix (out, in), or None where its zeros do not pay."""
        if not weight.numel():  # of a part that was pruned away
            return None
        # Where nearly all weights are zero, a matrix may be 2:4 by chance; a bitmask then reads less than half as much.
        nearly_empty = self.has_triton and int((weight != 0).sum()) * 4 < weight.numel()
        if not nearly_empty and (regular := semi_structured(weight)):
            return regular
        if not self.has_triton or weight.numel() >= 2**31:  # the kernel counts nonzeros in 32 bits
            return None
        from sparsebench.runtime.kernels.bitmask_gpu import BitmaskLinear

        layer = BitmaskLinear(weight, "cuda")
        return layer if layer.is_smaller or self.forced else None


def _no_triton() -> str:
    """Return why Triton cannot compile here, or "". It needs a C compiler and Python's headers besides its package."""
    if find_spec("triton") is None:
        return "there is no triton"
    try:
        from sparsebench.runtime.kernels import bitmask_gpu

        layer = bitmask_gpu.BitmaskLinear(torch.eye(16, 256, device="cpu", dtype=torch.bfloat16), "cuda")
        for tokens in (1, 2, bitmask_gpu.MOST_TOKENS + 1):  # each is another kernel
            layer(torch.ones(tokens, 256, device="cuda", dtype=torch.bfloat16))
    except Exception as error:  # Triton's own errors have no common class that is documented
        if out_of_memory(error):
            raise
        return f"triton does not compile here ({first_line(error)})"
    return ""


def _counted(roles: Counter[str]) -> str:
    """Return the roles in words: ``head``, or ``attention ×120, mlp ×90``."""
    return ", ".join(roles if len(roles) == 1 else (f"{role} ×{count}" for role, count in sorted(roles.items())))


def open_weights(source: SavedModel) -> StoredWeights:
    """Open the folder's tensors, packed, quantized or dense."""
    if is_packed(source.folder):
        return PackedCheckpoint(source.folder)
    return open_checkpoint(source.folder)


def _load_floats(weights: StoredWeights, view: View, dtype: Any, transposed: bool) -> Any:
    """Load one matrix as (out, in); ``transposed`` says that it is stored (in, out)."""
    weight = weights.load(view.tensor, view.expert).to(dtype)
    weight = weight if view.rows is None else weight[slice(*view.rows)]
    return weight.t().contiguous() if transposed else weight


def _matrix(weights: StoredWeights, view: View, dtype: Any, transposed: bool) -> Matrix:
    """Return one matrix for our kernels, without zeros where that pays; parts of files are mapped where they fit.

    Raises StorageError and ModelError (without the tensor's name) for damaged parts and for dtypes without kernels.
    """
    if view.name in getattr(weights, "quantized", ()):
        return _integers(weights, view)
    # bfloat16 weights stay 16 bits wide in float32: the products are the same, and half as many bytes are read.
    info = weights.tensors[view.tensor]
    held = torch.bfloat16 if info.dtype == "BF16" and dtype == torch.float32 else dtype
    whole = not transposed and view.expert is None and view.rows is None and info.shape[1] % MASK_WORD_COLUMNS == 0
    mapped = whole and isinstance(weights, PackedCheckpoint) and torch_dtype(info.dtype) == held
    if mapped and (parts := weights.mask_and_values(view.tensor)):  # type: ignore[attr-defined]
        rows, cols = info.shape
        matrix = bitmask(dtype_name(held), rows, cols, *parts)
        if bitmask_is_smaller(matrix.value_type, rows, cols, matrix.nonzeros):
            return matrix
    weight = _load_floats(weights, view, held, transposed)
    matrix = dense(weight)
    return to_bitmask(weight) if is_worth_bitmask(matrix) else matrix


def _integers(weights: Any, view: View) -> Matrix:
    words, scale = weights.words_and_scale(view.tensor)
    rows = slice(None) if view.rows is None else slice(*view.rows)
    scheme = weights.scheme
    info = weights.tensors[view.tensor]
    cols = info.shape[0] if weights.transposed else info.shape[1]
    matrix = integers(words[rows], scheme.encoding, cols, scale[rows], scheme.group)
    return integers_to_bitmask(matrix) if is_worth_bitmask(matrix) else matrix
