"""Loading a model's folder in any of its forms: dense, quantized, with masks, or with grouped neurons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparsebench.errors import UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import QuantizedCheckpoint, scheme_of
from sparsebench.models.files.safety import refuse_adapter
from sparsebench.models.modules import moefied, skipping
from sparsebench.models.modules.build import build_model
from sparsebench.models.modules.quantized_linear import QuantizedLinear, float_layers, integer_layers


def load_model(
    folder: Path, family: Family, dtype: str = "auto", device: str = "cpu", kind: Any = None
) -> PreTrainedModel:
    """Load the model in eval mode on ``device``, in ``dtype`` (``auto``: the checkpoint's).

    Quantized weights are expanded to floats; a model that skips weights gets its masks. An encoder with a
    sequence-classification head is loaded with it, a plain one as AutoModel, and one without pooler weights without a
    pooler. ``kind`` is another auto class of transformers, such as one with a head. Raises ModelError when weights are
    missing: some checkpoints name a head that their files lack.
    """
    folder = Path(folder)
    refuse_adapter(folder)
    weights = Checkpoint(folder)
    replace = None
    if scheme_of(weights.config):
        weights = QuantizedCheckpoint(folder)
        replace = float_layers(weights)
    model: Any = build_model(weights, family, dtype, replace=replace, kind=kind)
    moefied.install_routers(model, weights)
    skipping.install_thresholds(model, weights.config)
    return model.to(device)


def load_expanded(folder: Path, family: Family, dtype: str, prepare: Callable[[Any], object]) -> PreTrainedModel:
    """Load a quantized folder as floats, layer by layer; ``prepare`` may cut the empty model."""
    weights = QuantizedCheckpoint(Path(folder))
    return build_model(weights, family, dtype, prepare, float_layers(weights))


def load_kernels(
    folder: Path, family: Family, dtype: str = "auto", prepare: Callable[[Any], object] = lambda model: None
) -> PreTrainedModel:
    """Load a quantized folder with layers that multiply its integers; ``prepare`` may cut the empty model.

    Raises UnsupportedError where no kernel takes any of its layers.
    """
    weights = QuantizedCheckpoint(Path(folder))
    weights.scheme.check_kernels()
    model = build_model(weights, family, dtype, prepare, integer_layers(weights))
    if not any(isinstance(module, QuantizedLinear) for module in model.modules()):
        problem = f"{folder}: no {weights.scheme.encoding} kernel takes a matrix of this model's"
        raise UnsupportedError(problem, "score it, or use int8")
    return model
