"""Dense weights in 8 bits, activations quantized as they come: what one would try before pruning.

torch's dynamic quantization: weights symmetric per tensor, activations per call, products in int32. It takes and gives
float32, so the rest of the model runs in float32 whatever the checkpoint is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from sparsebench.errors import UnsupportedError
from sparsebench.runtime.engines.base import Source, Wrapping
from sparsebench.runtime.engines.hf import Plain
from sparsebench.runtime.parity import checked, distance, outputs, shorten
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Inputs

TOLERANCE = 0.2
"""Relative L2 of the output from which it is taken for broken rather than for coarse."""


class Quantized(Plain):
    """The model with its int8 weights, which torch keeps neither as parameters nor as buffers."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        layers = [one for one in module.modules() if hasattr(one, "_packed_params") and hasattr(one, "in_features")]
        self.layers = len(layers)
        self.hidden_bytes = sum(layer.in_features * layer.out_features for layer in layers)


class Int8(Wrapping):
    """``torch.ao.quantization.quantize_dynamic`` on every linear layer, the output head too; one process, CPU."""

    def __init__(self) -> None:
        self.backend, self.layers, self.left = "", 0, 0

    @property
    def kernel(self) -> str:
        """Names torch's backend."""
        left = f"; fused experts ×{self.left} stay float32" if self.left else ""
        return f"int8 dynamic torch {self.backend} ×{self.layers}, activations float32{left}"

    def check(self, config: Mapping[str, Any], ranks: int) -> None:
        """Any model."""

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Choose torch's backend. Raises UnsupportedError where there is a GPU."""
        import torch

        if torch.cuda.is_available():
            raise UnsupportedError("torch's dynamic int8 runs on a CPU only", "hide the GPU (CUDA_VISIBLE_DEVICES=)")
        self.backend = torch.backends.quantized.engine
        return ()

    def load(self, source: Source, tokens: int, baseline: bool) -> Plain:
        """The model read in float32, whatever was asked for, and quantized; a ``baseline`` is the plain dense model."""
        if baseline:
            return Plain(source.plain())
        return self.wrap(Source(source.folder, source.family, "float32").plain(), None, tokens)

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Quantized:
        """Every linear layer quantized in place. Raises UnsupportedError for a model that has none."""
        import torch

        from sparsebench.models.experts import left_fused

        for path, module in list(model.named_modules()):
            if type(module).__name__ == "Conv1D":  # GPT-2's, which torch does not know
                model.set_submodule(path, _linear(module))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, but its successor is another package
            quantize = torch.ao.quantization.quantize_dynamic
            made = Quantized(quantize(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True))
        self.layers, self.left = made.layers, len(left_fused(model))
        if not made.layers:
            raise UnsupportedError(f"a {type(model).__name__} has no nn.Linear for torch to quantize")
        return made

    def parity(self, source: Source, prompt: Inputs) -> Parity | None:
        """The relative distance of outputs to the plain float32 model. Raises MeasureError above ``TOLERANCE``."""
        model = Source(source.folder, source.family, "float32").plain()
        blocks = shorten(model)
        plain = outputs(model, source.family, prompt)
        found = distance(outputs(self.wrap(model, None, 0), source.family, prompt), plain)
        judged = Parity(found, TOLERANCE, "int8", blocks, False)
        return checked(judged, "int8 does not suit this model: its output is not its own any more")


def _linear(module: Any) -> Any:
    """A Conv1D, whose weight is (in, out), as ``nn.Linear``."""
    from torch import nn

    inputs, out = module.weight.shape
    made = nn.Linear(inputs, out, bias=module.bias is not None, device="meta")
    made.weight = nn.Parameter(module.weight.t().contiguous(), requires_grad=False)
    made.bias = module.bias
    return made
