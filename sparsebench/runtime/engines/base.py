"""What an engine must do. It lives in a rank's process; its imports are heavy and happen in its methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparsebench.errors import UnsupportedError
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.quantized import FLOAT, encoding_of
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt

DENSE = ("Linear", "Conv1D")
KERNELS_TAKE = ("float32", "bfloat16")
"""The dtypes of activations that our own kernels have."""


def check_dtype(engine: str, model: Any) -> None:
    """Raise UnsupportedError for a model in a dtype that none of our kernels takes."""
    if str(model.dtype).removeprefix("torch.") not in KERNELS_TAKE:
        raise UnsupportedError(f"the {engine} engine does not run in {model.dtype}", "measure it in bfloat16")


@dataclass(frozen=True)
class SavedModel:
    """A model on disk, and the dtype to run it in (``auto``: the checkpoint's)."""

    folder: Path
    family: Any
    dtype: str = "auto"

    def plain(self) -> Any:
        """The dense model as stock transformers loads it, on the CPU."""
        from sparsebench.models.load import load_model

        return load_model(self.folder, self.family, self.dtype)

    @property
    def quantized(self) -> bool:
        """Whether the weights are integers."""
        return encoding_of(Checkpoint(self.folder).config) != FLOAT

    def running(self, prepare: Callable[[Any], object] = lambda model: None) -> Any:
        """A quantized model as it is run, multiplying integers; ``prepare`` may cut the empty model.

        Raises UnsupportedError where there is a GPU: torch's kernels that are used are those of a CPU.
        """
        import torch

        from sparsebench.models.load import load_kernels

        if torch.cuda.is_available():
            raise UnsupportedError("quantized weights are run on a CPU only", "hide the GPU (CUDA_VISIBLE_DEVICES=)")
        return load_kernels(self.folder, self.family, self.dtype, prepare)

    def against_floats(self, prompt: Prompt, wrap: Callable[[Any], Any]) -> Parity:
        """What multiplies integers, as ``wrap`` makes it, against the same weights as floats; kernels round to bfloat16 as well.

        Raises ParityError where it is further off than that rounding explains.
        """
        from sparsebench.models.load import load_expanded
        from sparsebench.runtime.parity import Cut, beside_rounding

        def expanded(dtype: str, cut: Cut) -> Any:
            return load_expanded(self.folder, self.family, dtype, cut)

        def integers(cut: Cut) -> Any:
            return wrap(self.running(cut))

        return beside_rounding(expanded, "bfloat16", integers, self.family, prompt, "an integer kernel is wrong for it")


class Engine(Protocol):
    """Turns a model on disk into one that runs.

    What it makes is called as the Hugging Face model is, has ``generate`` and ``get_encoder`` where the model has, and
    the model itself as ``module``.
    """

    reads_packed: bool
    """Whether it loads packed folders."""
    forced: bool
    """Of one that skips zeros: whether its kernels take every layer, however few zeros that has."""

    @property
    def kernel(self) -> str:
        """What multiplies weights, as the report shall name it; said when the phases have run."""

    def check(self, config: Mapping[str, Any], ranks: int) -> None:
        """Raise UnsupportedError where it is known, before anything is loaded, that this cannot work."""

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Import libraries and join the group; returns notes for the result."""

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Any:
        """The model, placed for ``tokens`` tokens at most; as a ``baseline`` it is what others are compared with."""

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare with the plain model, on a shortened copy; None where the engine is the plain model.

        Raises UnsupportedError when the engine's model does not run, MeasureError above the tolerance.
        """


def products(model: Any) -> str:
    """Such as ``int8 torch _weight_int8pack_mm … ×210, dense torch linear ×1``; nothing for a model of floats."""
    from sparsebench.models.quantized_linear import QuantizedLinear

    kinds = Counter(module.kernel for module in model.modules() if isinstance(module, QuantizedLinear))
    dense = sum(type(module).__name__ in DENSE for module in model.modules())
    found = [*kinds.items(), *[("dense torch linear", dense)] * bool(dense)] if kinds else []
    return ", ".join(f"{name} ×{count}" for name, count in found)


class Wrapping:
    """The part of an engine that takes a plain model and makes it its own, the same for both sides of a pair."""

    reads_packed = False
    forced = False
    multiplied = ""
    """What multiplies the weights of a quantized model, once one is loaded."""

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Any:
        """The plain model in the source's dtype, or the quantized one, wrapped; a baseline is wrapped as well."""
        model = source.running() if source.quantized else source.plain()
        self.multiplied = products(model)
        return self.wrap(model, model.dtype, tokens)

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Any:
        """Place ``model`` (a PreTrainedModel on the CPU, which this may take apart) for ``tokens`` tokens at most."""
        raise NotImplementedError
