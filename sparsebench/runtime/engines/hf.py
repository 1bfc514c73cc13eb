"""The plain Hugging Face model, one process: what other engines are compared with."""

from __future__ import annotations

from typing import Any

import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.skipping import skips_weights
from sparsebench.runtime.engines.base import DENSE, SavedModel, WrappingEngine
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt


class PlainModel:
    """A model that nothing wraps, with the interface of a wrapped one."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.generate = getattr(module, "generate", None)
        self.get_encoder = getattr(module, "get_encoder", None)

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)


class HuggingFace(WrappingEngine):
    """transformers, with nothing around it but the interface ``PlainModel``."""

    masks_values = False
    """Whether the last loaded model skips weights; this engine masks values and computes with all weights."""

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Any:
        self.masks_values = skips_weights(Checkpoint(source.folder).config)
        return super().load(source, tokens, baseline)

    @property
    def kernel(self) -> str:
        return (self.integer_kernels or DENSE) + "; what is to be skipped is masked" * self.masks_values

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Return no notes: there is no group to join."""
        return ()

    def wrap(self, model: Any, dtype: Any, tokens: int) -> PlainModel:
        return PlainModel(model.to(device="cuda" if torch.cuda.is_available() else "cpu"))

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare a quantized model with its weights as floats; return None for others, which are the reference."""
        return source.parity_with_floats(prompt, lambda model: self.wrap(model, None, 0)) if source.quantized else None
