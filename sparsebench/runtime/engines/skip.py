"""Our engine for models that skip weights: for a few tokens, on a CPU, it reads only the weights that are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.modules.skipping import FeedForward, SkipThresholds, experts_of, skip_of, skips
from sparsebench.models.shape.topology import LINEAR_TYPES, module_path, part
from sparsebench.native import Missing
from sparsebench.runtime.engines.base import DENSE, SavedModel, check_dtype
from sparsebench.runtime.engines.hf import Plain
from sparsebench.runtime.parity import Cut, beside_rounding
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sparsebench.runtime.kernels import Kernels
    from sparsebench.runtime.kernels.skipping import Skipping, Tally


class SkipEngine:
    """One process on a CPU. A model that skips nothing, such as the dense side of a pair, runs as it is."""

    def __init__(self) -> None:
        self.kernels: Kernels | Missing = Missing("not started")
        # Numbers only, not the model: it must be freed before the next one is loaded.
        self.tallies: list[Tally] = []
        self.dense = 0
        self.item = 4

    def check(self, config: Mapping[str, Any], ranks: int) -> None:
        """Accept any model: what a layer's kernel cannot do is known when it is loaded."""

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Compile or load the kernels. Raises UnsupportedError where there are none."""
        from sparsebench.runtime.kernels import kernels

        self.kernels = kernels()
        if isinstance(self.kernels, Missing):
            raise UnsupportedError(
                f"the skip engine has no compiled kernels: {self.kernels.reason}", "use the hf engine"
            )
        return self.kernels.notes

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Plain:
        """Load the model and replace the layers that skip; a model that skips nothing stays as it is."""
        model = source.plain()
        self._replace(model, source)
        return Plain(model)

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare with the same model by masks and dense float32 arithmetic; return None where nothing is skipped."""
        if not skips(Checkpoint(source.folder).config):
            return None

        def masked(dtype: str, cut: Cut) -> Any:
            model = SavedModel(source.folder, source.family, dtype).plain()
            cut(model)
            return model

        def skipping(cut: Cut) -> Any:
            model = masked(source.dtype, cut)
            self._replace(model, source)
            return model

        wrong = "a skipping kernel is wrong for it"
        return beside_rounding(masked, source.dtype, skipping, source.family, prompt, wrong)

    @property
    def kernel(self) -> str:
        """Text such as ``skipping avx512 ×210 (inputs above a threshold: 60% of the weights read), dense torch linear
        ×1; more than 16 tokens: dense``. For layers stored without zeros it also says which share of the weights is
        multiplied, and which share of the dense bytes is read."""
        if not self.tallies or isinstance(self.kernels, Missing):
            return DENSE
        from sparsebench.runtime.kernels.skipping import TOKENS, instructions

        parts = []
        for packed, way in sorted({(tally.packed, tally.way) for tally in self.tallies}):
            own = [tally for tally in self.tallies if (tally.packed, tally.way) == (packed, way)]
            counts = sorted({tokens for tally in own for tokens in tally.products}) or [1]
            said = [f"{tokens} tokens at once: " * (tokens > 1) + _read(own, tokens, self.item) for tokens in counts]
            layout = " bitmask" if packed else ""
            parts.append(f"skipping {instructions(self.kernels)}{layout} ×{len(own)} ({way}: {'; '.join(said)})")
        return ", ".join([*parts, f"{DENSE} ×{self.dense}"]) + f"; more than {TOKENS} tokens: dense"

    def _replace(self, model: Any, source: SavedModel) -> None:
        """Put skipping layers into the model, in place. Raises UnsupportedError for a dtype without a kernel."""
        config, self.tallies = Checkpoint(source.folder).config, []
        if not skips(config) or isinstance(self.kernels, Missing):
            return
        check_dtype("skip", model.dtype)
        put = _Putting(model, self.kernels)
        skip, experts = skip_of(config) or SkipThresholds({}, {}), experts_of(config)
        # A model that was cut for the parity check lacks blocks.
        for path, limit in skip.inputs.items():
            if name := module_path(model, path):
                put.columns(name, limit)
        for path, limit in skip.outputs.items():
            if name := module_path(model, path):
                put.behind(name, limit, _beside(model, name, config, source.family))
        for one in experts.parts if experts else ():
            if module_path(model, one.down):
                put.experts(one)
        self.tallies, self.item = put.tallies, model.dtype.itemsize
        self.dense = sum(type(module).__name__ in LINEAR_TYPES for module in model.modules())


def _read(layers: list[Tally], tokens: int, item: int) -> str:
    """Say what layers of one kind read for ``tokens`` tokens at once; ``item`` is the bytes of a weight."""
    met, multiplied, read = (sum(each) for each in zip(*(one.product(tokens) for one in layers), strict=True))
    weights = sum(one.weights for one in layers)
    if not layers[0].packed:
        return f"{met / weights:.0%} of the weights read"
    return (
        f"{met / weights:.0%} of the weights met, {multiplied / weights:.0%} not zero, "
        f"{read / (item * weights):.0%} of the dense bytes read"
    )


def _beside(model: Any, path: str, config: Mapping[str, Any], family: str) -> dict[str, str]:
    """Return the names of the linear layers in the block of the activation function at ``path``, by kind."""

    def where(name: str) -> Any:
        return part(TensorInfo(f"{name}.weight", "F32", (2, 2), "", 0, 0), config, family)

    own = where(path)
    linear = (name for name, module in model.named_modules() if type(module).__name__ in LINEAR_TYPES)
    found = {name: where(name) for name in linear}
    return {one.kind: name for name, one in found.items() if (one.side, one.layer) == (own.side, own.layer)}


def _matrix(module: Any) -> torch.Tensor:
    """Return the weight of a linear layer as (out, in)."""
    stored: torch.Tensor = module.weight.detach()
    return stored.T if type(module).__name__ == "Conv1D" else stored


class _Putting:
    """Replaces layers of one model by skipping layers, whose tallies it collects in ``tallies``."""

    def __init__(self, model: Any, kernels: Kernels) -> None:
        self.model, self.kernels = model, kernels
        self.tallies: list[Tally] = []

    def columns(self, name: str, limit: float) -> nn.Module:
        """Replace a linear layer by one that reads only the weights of inputs above ``limit``; return it."""
        from sparsebench.runtime.kernels.skipping import SkipColumns

        module = self.model.get_submodule(name)
        return self._put(name, SkipColumns(self.kernels, _matrix(module).T.contiguous(), module.bias, limit))

    def rows(self, name: str, decide: Callable[[], torch.Tensor | None]) -> nn.Module:
        """Replace a linear layer by one that reads only the weights of outputs that ``decide`` names; return it."""
        from sparsebench.runtime.kernels.skipping import SkipRows

        module = self.model.get_submodule(name)
        return self._put(name, SkipRows(self.kernels, _matrix(module).contiguous(), module.bias, decide))

    def behind(self, name: str, limit: float, beside: Mapping[str, str]) -> None:
        """Replace an activation function, so that values up to ``limit`` become zero, and the layers that skip them."""
        from sparsebench.runtime.kernels.skipping import ThresholdedActivation

        function = self.model.get_submodule(name)
        function._forward_hooks.clear()  # remove the hook that masks for scoring
        deciding = ThresholdedActivation(function, limit)
        self.model.set_submodule(name, deciding)
        if "gate" in beside and "up" in beside:
            self.rows(beside["up"], deciding.taken)
        self.columns(beside["down"], 0.0)

    def experts(self, part: FeedForward) -> None:
        """Replace the layers of a feed-forward part whose router names the neurons to compute.

        The oracle router needs all neurons' values, so that only the last layer can skip.
        """
        from sparsebench.models.modules.moefied import hook

        first, second, down = (module_path(self.model, path) for path in (part.first, part.second, part.down))
        assert first and down
        chooser: Any = self.model.get_submodule(down).moe
        begin = self.model.get_submodule(first)
        begin._forward_pre_hooks.clear()
        if chooser.how.router != "oracle" and chooser.neurons == len(_matrix(begin)):
            begin = self.rows(first, chooser.choice)
            if second:
                self.rows(second, chooser.choice)
        hook(chooser, begin, self.columns(down, 0.0))

    def _put(self, name: str, layer: Skipping) -> nn.Module:
        self.model.set_submodule(name, layer)
        self.tallies.append(layer.tally)
        return layer
