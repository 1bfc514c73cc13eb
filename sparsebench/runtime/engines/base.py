"""What an engine must do. Engines' modules are imported in a rank's process only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint, dtype_name
from sparsebench.models.files.quantized import FLOAT, encoding_of
from sparsebench.models.modules.load import load_expanded, load_kernels, load_model
from sparsebench.models.modules.quantized_linear import QuantizedLinear
from sparsebench.models.shape.topology import LINEAR_TYPES
from sparsebench.runtime.parity import PlainOutputs, shorten
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt

DENSE = "dense torch linear"
"""The name in results of torch's own product with all weights."""
KERNEL_DTYPES = ("float32", "bfloat16")
"""The activation dtypes that our own kernels for CPUs support."""


def check_dtype(engine: str, dtype: Any) -> None:
    """Raise UnsupportedError for a dtype, torch's or its name, that our kernels for CPUs do not support."""
    if (name := dtype_name(dtype)) not in KERNEL_DTYPES:
        raise UnsupportedError(f"the {engine} engine does not run in {name} on a CPU", "measure it in bfloat16")


@dataclass(frozen=True)
class SavedModel:
    """A model on disk, and the dtype to run it in (``auto``: the checkpoint's)."""

    folder: Path
    family: Any
    dtype: str = "auto"

    def load_plain(self) -> Any:
        """Load the dense model with stock transformers, on the CPU."""
        return load_model(self.folder, self.family, self.dtype)

    def load_stored(self) -> Any:
        """Load the dense model in the checkpoint's own dtype, whatever ``dtype`` is, on the CPU."""
        return load_model(self.folder, self.family, "auto")

    @property
    def quantized(self) -> bool:
        """Whether the weights are integers."""
        return encoding_of(Checkpoint(self.folder).config) != FLOAT

    def load_integers(self, prepare: Callable[[Any], object] = lambda model: None) -> Any:
        """Load a quantized model with kernels that multiply its integers; ``prepare`` may cut the still empty model.

        Raises UnsupportedError where there is a GPU: the torch kernels that are used run on a CPU only.
        """
        if torch.cuda.is_available():
            raise UnsupportedError("quantized weights are run on a CPU only", "hide the GPU (CUDA_VISIBLE_DEVICES=)")
        return load_kernels(self.folder, self.family, self.dtype, prepare)

    def parity_with_floats(self, prompt: Prompt, wrap: Callable[[Any], Any]) -> Parity:
        """Compare the integer model, as ``wrap`` makes it, with the same weights as floats; it rounds to bfloat16.

        Raises ParityError where the difference is larger than that rounding explains.
        """
        floats = PlainOutputs.of(
            lambda dtype: load_expanded(self.folder, self.family, dtype, shorten), "bfloat16", self.family, prompt
        )
        integers = wrap(self.load_integers(shorten))
        return floats.check(integers, self.family, prompt, "an integer kernel is wrong for it")


class Engine(Protocol):
    """Turns a model on disk into one that runs.

    The result is called like the Hugging Face model, has ``generate`` and ``get_encoder`` where that model has them,
    and holds the model itself as ``module``.
    """

    forced: bool
    """Of an engine that skips zeros: whether it uses its kernels for every layer, however few zeros that has."""

    @property
    def kernel(self) -> str:
        """What multiplies the weights, in the report's words; read after the phases have run."""

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Import libraries and join the group; return notes for the result."""

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Any:
        """Load the model for at most ``tokens`` tokens; a ``baseline`` is the model that others are compared with."""

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare with the plain model, on a shortened copy; return None where there is nothing to compare.

        Raises UnsupportedError when the engine's model does not run, ParityError above the tolerance.
        """


def describe_integer_kernels(model: Any) -> str:
    """Return what multiplies a model's integers, such as ``int8 torch _weight_int8pack_mm … ×210, dense torch linear ×1``.

    It is empty for a model of floats.
    """
    counts = Counter(module.kernel for module in model.modules() if isinstance(module, QuantizedLinear))
    if counts and (dense := sum(type(module).__name__ in LINEAR_TYPES for module in model.modules())):
        counts[DENSE] = dense
    return ", ".join(f"{kernel} ×{count}" for kernel, count in counts.items())


class WrappingEngine:
    """The common part of engines that wrap a plain model, the same way for both sides of a pair."""

    forced = False
    integer_kernels = ""
    """What multiplies the weights of the last loaded model, if that was quantized; else empty."""

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Any:
        """Load the plain model in the source's dtype, or the quantized one, and wrap it; a baseline too."""
        model = source.load_integers() if source.quantized else source.load_plain()
        self.integer_kernels = describe_integer_kernels(model)
        return self.wrap(model, model.dtype, tokens)

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Any:
        """Wrap ``model``, a PreTrainedModel on the CPU that may be changed here, for at most ``tokens`` tokens."""
        raise NotImplementedError
