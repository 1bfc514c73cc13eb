"""The plain Hugging Face model, one process: what other engines are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.skipping import skips
from sparsebench.runtime.engines.base import SavedModel, Wrapping
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt


class Plain:
    """The model under the interface of a wrapped one."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.generate = getattr(module, "generate", None)
        self.get_encoder = getattr(module, "get_encoder", None)

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)


class HuggingFace(Wrapping):
    """transformers without anything around it."""

    masks = False
    """Whether the last model that was loaded skips weights: it computes with all of them here."""

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Any:
        """As every engine that wraps."""
        self.masks = skips(Checkpoint(source.folder).config)
        return super().load(source, tokens, baseline)

    @property
    def kernel(self) -> str:
        return (self.multiplied or "dense torch linear") + "; what is to be skipped is masked" * self.masks

    def check(self, config: Mapping[str, Any], ranks: int) -> None:
        """Any model."""

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Nothing to join, nothing to note."""
        return ()

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Plain:
        """The model itself, on the GPU where there is one."""
        import torch

        return Plain(model.to(device="cuda" if torch.cuda.is_available() else "cpu"))

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """None where this is what others are compared with; integer kernels against the floats that they stand for."""
        return source.against_floats(prompt, lambda model: self.wrap(model, None, 0)) if source.quantized else None
