"""Our engine for models that skip weights: for a few tokens, on a CPU, it reads only the weights that are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules import moefied
from sparsebench.models.modules.skipping import FeedForward, SkipThresholds, experts_of, skips_weights, thresholds_of
from sparsebench.models.shape.topology import LINEAR_TYPES, module_part, module_path
from sparsebench.native import Missing
from sparsebench.runtime.engines.base import DENSE, SavedModel, check_dtype
from sparsebench.runtime.engines.hf import PlainModel
from sparsebench.runtime.kernels import Kernels, kernels
from sparsebench.runtime.kernels.skipping import (
    MOST_TOKENS,
    SkipColumns,
    Skipping,
    SkipRows,
    Tally,
    ThresholdedActivation,
    instructions,
)  # fmt: skip
from sparsebench.runtime.parity import PlainOutputs, shorten
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt


class SkipEngine:
    """One process on a CPU. A model that skips nothing, such as the dense side of a pair, runs as it is."""

    def __init__(self) -> None:
        self.kernels: Kernels
        # Numbers only, not the model: it must be freed before the next one is loaded.
        self.tallies: list[Tally] = []
        self.dense_layers = 0
        self.weight_bytes = 4

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Compile or load the kernels. Raises UnsupportedError where there are none."""
        compiled = kernels()
        if isinstance(compiled, Missing):
            raise UnsupportedError(f"the skip engine has no compiled kernels: {compiled.reason}", "use the hf engine")
        self.kernels = compiled
        return compiled.notes

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> PlainModel:
        """Load the model and replace the layers that skip; a model that skips nothing stays as it is."""
        model = source.load_plain()
        self._replace_layers(model, source)
        return PlainModel(model)

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare with the same model by masks and dense float32 arithmetic; return None where nothing is skipped."""
        if not skips_weights(Checkpoint(source.folder).config):
            return None

        masked = PlainOutputs.of(
            lambda dtype: SavedModel(source.folder, source.family, dtype).load_plain(),
            source.dtype,
            source.family,
            prompt,
        )
        skipping = source.load_plain()
        shorten(skipping)
        self._replace_layers(skipping, source)
        return masked.check(skipping, source.family, prompt, "a skipping kernel is wrong for it")

    @property
    def kernel(self) -> str:
        """Text such as ``skipping avx512 ×210 (inputs above a threshold: 60% of the weights read), dense torch linear
        ×1; more than 16 tokens: dense``. For layers stored without zeros it also says which share of the weights is
        multiplied, and which share of the dense bytes is read."""
        if not self.tallies:
            return DENSE
        parts = []
        for is_bitmask, way in sorted({(tally.is_bitmask, tally.reads) for tally in self.tallies}):
            alike = [tally for tally in self.tallies if (tally.is_bitmask, tally.reads) == (is_bitmask, way)]
            counts = sorted({tokens for tally in alike for tokens in tally.products}) or [1]
            shares = "; ".join(
                f"{tokens} tokens at once: " * (tokens > 1) + _shares_read(alike, tokens, self.weight_bytes)
                for tokens in counts
            )
            layout = " bitmask" if is_bitmask else ""
            parts.append(f"skipping {instructions(self.kernels)}{layout} ×{len(alike)} ({way}: {shares})")
        return ", ".join([*parts, f"{DENSE} ×{self.dense_layers}"]) + f"; more than {MOST_TOKENS} tokens: dense"

    def _replace_layers(self, model: Any, source: SavedModel) -> None:
        """Put skipping layers into the model, in place. Raises UnsupportedError for a dtype without a kernel."""
        config, self.tallies = Checkpoint(source.folder).config, []
        if not skips_weights(config):
            return
        check_dtype("skip", model.dtype)
        replacer = _LayerReplacer(model, self.kernels)
        skip, experts = thresholds_of(config) or SkipThresholds({}, {}), experts_of(config)
        # A model that was cut for the parity check lacks blocks.
        for path, limit in skip.inputs.items():
            if name := module_path(model, path):
                replacer.replace_by_columns(name, limit)
        for path, limit in skip.outputs.items():
            if name := module_path(model, path):
                replacer.replace_activation(name, limit, _linear_beside(model, name, config, source.family))
        for feed_forward in experts.parts if experts else ():
            if module_path(model, feed_forward.down):
                replacer.replace_experts(feed_forward)
        self.tallies, self.weight_bytes = replacer.tallies, model.dtype.itemsize
        self.dense_layers = sum(type(module).__name__ in LINEAR_TYPES for module in model.modules())


def _shares_read(tallies: list[Tally], tokens: int, weight_bytes: int) -> str:
    """Say what layers of one kind read for ``tokens`` tokens at once."""
    products = zip(*(tally.product(tokens) for tally in tallies), strict=True)
    read, multiplied, nbytes = (sum(counts) for counts in products)
    weights = sum(tally.weights for tally in tallies)
    if not tallies[0].is_bitmask:
        return f"{read / weights:.0%} of the weights read"
    return (
        f"{read / weights:.0%} of the weights met, {multiplied / weights:.0%} not zero, "
        f"{nbytes / (weight_bytes * weights):.0%} of the dense bytes read"
    )


def _linear_beside(model: Any, path: str, config: Mapping[str, Any], family: str) -> dict[str, str]:
    """Return the names of the linear layers in the block of the activation function at ``path``, by kind."""
    function = module_part(path, config, family)
    linear = (name for name, module in model.named_modules() if type(module).__name__ in LINEAR_TYPES)
    parts = {name: module_part(name, config, family) for name in linear}
    return {
        part.kind: name for name, part in parts.items() if (part.stack, part.block) == (function.stack, function.block)
    }


def _matrix(module: Any) -> torch.Tensor:
    stored: torch.Tensor = module.weight.detach()
    return stored.T if type(module).__name__ == "Conv1D" else stored


class _LayerReplacer:
    """Replaces layers of one model by skipping layers, whose tallies it collects in ``tallies``."""

    def __init__(self, model: Any, kernels: Kernels) -> None:
        self.model, self.kernels = model, kernels
        self.tallies: list[Tally] = []

    def replace_by_columns(self, name: str, limit: float) -> Skipping:
        """Replace a linear layer by one that reads only the weights of inputs above ``limit``; return it."""
        module = self.model.get_submodule(name)
        return self._put(name, SkipColumns(self.kernels, _matrix(module).T.contiguous(), module.bias, limit))

    def replace_by_rows(self, name: str, deciding_values: Callable[[], torch.Tensor | None]) -> Skipping:
        """Replace a linear layer by one that reads only the weights of outputs that ``deciding_values`` names; return it."""
        module = self.model.get_submodule(name)
        return self._put(name, SkipRows(self.kernels, _matrix(module).contiguous(), module.bias, deciding_values))

    def replace_activation(self, name: str, limit: float, beside: Mapping[str, str]) -> None:
        """Replace an activation function, so that values up to ``limit`` become zero, and the layers that skip them."""
        function = self.model.get_submodule(name)
        function._forward_hooks.clear()  # remove the hook that masks for scoring
        thresholded = ThresholdedActivation(function, limit)
        self.model.set_submodule(name, thresholded)
        if "gate" in beside and "up" in beside:
            self.replace_by_rows(beside["up"], thresholded.take_values)
        self.replace_by_columns(beside["down"], 0.0)

    def replace_experts(self, feed_forward: FeedForward) -> None:
        """Replace the layers of a feed-forward part whose router names the neurons to compute.

        The oracle router needs all neurons' values, so that only the last layer can skip.
        """
        paths = feed_forward.first, feed_forward.second, feed_forward.down
        first, second, down = (module_path(self.model, path) for path in paths)
        assert first and down
        chooser: Any = self.model.get_submodule(down).moe
        begin = self.model.get_submodule(first)
        begin._forward_pre_hooks.clear()
        if chooser.experts_config.router != "oracle" and chooser.neurons == len(_matrix(begin)):
            begin = self.replace_by_rows(first, chooser.chosen_neurons)
            if second:
                self.replace_by_rows(second, chooser.chosen_neurons)
        moefied.hook_router(chooser, begin, self.replace_by_columns(down, 0.0))

    def _put(self, name: str, layer: Skipping) -> Skipping:
        self.model.set_submodule(name, layer)
        self.tallies.append(layer.tally)
        return layer
