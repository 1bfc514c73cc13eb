"""Models that compute with only some of their weights for each token: masks on the inputs or outputs of their modules.

The weights are the dense model's. Under ``sparsebench_skip``, config.json has thresholds by module path: in ``inputs``
for the inputs of linear layers (TEAL), in ``outputs`` for the outputs of activation functions (CATS). Values of a
magnitude up to the threshold become zero, and the weights that multiply them need not be read. Here the arithmetic
stays dense, to score what the method loses; ``runtime/engines/skip`` does not read the weights. Stock transformers
ignores the key and computes with all. The key ``sparsebench_moe`` says how neurons are grouped into experts, of which a
router chooses some; ``moefied`` computes with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError
from sparsebench.models.shape.topology import module_path

if TYPE_CHECKING:
    import torch
    from torch import nn

KEY, EXPERTS_KEY = "sparsebench_skip", "sparsebench_moe"
INPUTS, OUTPUTS = "inputs", "outputs"
ROUTERS = ("oracle", "centroid", "representative", "learned")
COUNTED = ("coactivation", "cmoe")
"""The grouping methods that count how often neurons are active."""


@dataclass(frozen=True)
class SkipThresholds:
    """Magnitudes up to which values become zero, by module path in the model that transformers builds.

    ``inputs`` are for the inputs of linear layers, ``outputs`` for the outputs of activation functions.
    """

    inputs: Mapping[str, float]
    outputs: Mapping[str, float]

    def config(self) -> dict[str, Any]:
        """Return the thresholds' entry in config.json."""
        return {KEY: {INPUTS: dict(self.inputs), OUTPUTS: dict(self.outputs)}}


def skip_of(config: Mapping[str, Any]) -> SkipThresholds | None:
    """Return the thresholds in a config.json; None where it has none.

    Raises ModelError for an entry that sparsebench would not write.
    """
    entry = config.get(KEY)
    if entry is None:
        return None
    tables: list[Any] = [entry.get(kind) for kind in (INPUTS, OUTPUTS)] if isinstance(entry, dict) else [None]
    if not all(isinstance(table, dict) and all(map(_is_magnitude, table.values())) for table in tables):
        raise ModelError(f"config.json: `{KEY}` is damaged", "make the variant again")
    return SkipThresholds(*tables)


def active_experts(experts: int, share: float) -> int:
    """Return how many experts a ``share`` of them is, at least one."""
    return max(1, round(experts * share))


@dataclass(frozen=True)
class FeedForward:
    """The paths of one feed-forward part's modules.

    ``first`` is the layer that reads its input, ``second`` another one beside it (empty where there is none), ``down``
    the layer that reads its neurons, and ``activation`` their activation function.
    """

    first: str
    second: str
    down: str
    activation: str

    def name(self, what: str) -> str:
        """Return the checkpoint's name of the tensor ``what`` of the part's grouping."""
        return f"{self.down}.moe.{what}"


@dataclass(frozen=True)
class ExpertsConfig:
    """How neurons are grouped and chosen: ``active`` of ``experts`` are computed for a token, the first ``shared`` always."""

    router: str
    experts: int
    active: int
    shared: int
    parts: tuple[FeedForward, ...]

    def config(self) -> dict[str, Any]:
        """Return the entry in config.json."""
        return {EXPERTS_KEY: asdict(self)}


def experts_of(config: Mapping[str, Any]) -> ExpertsConfig | None:
    """Return how the model of a config.json groups its neurons; None where it does not.

    Raises ModelError for an entry that sparsebench would not write.
    """
    entry = config.get(EXPERTS_KEY)
    if entry is None:
        return None
    try:
        parts = tuple(FeedForward(**part) for part in entry["parts"])
        grouping = ExpertsConfig(**{**entry, "parts": parts})
        numbers = (grouping.experts, grouping.active, grouping.shared)
        known = grouping.router in ROUTERS and all(type(number) is int for number in numbers)
        known = known and 1 <= grouping.active <= grouping.experts and grouping.shared >= 0
        known = known and all(isinstance(text, str) for part in parts for text in asdict(part).values())
    except (KeyError, TypeError):
        known = False
    if not known:
        raise ModelError(f"config.json: `{EXPERTS_KEY}` is damaged", "make the variant again")
    return grouping


def skips(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json's model computes with only some of its weights, chosen by thresholds or a router."""
    return bool(skip_of(config) or experts_of(config))


def _is_magnitude(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def install(model: Any, config: Mapping[str, Any]) -> None:
    """Hook the masks of config.json's thresholds into ``model``, in place.

    Raises ModelError where a module that config.json names is missing.
    """
    skip = skip_of(config) or SkipThresholds({}, {})
    for path, magnitude in skip.inputs.items():
        module_at(model, path, KEY).register_forward_pre_hook(partial(_mask_input, magnitude))
    for path, magnitude in skip.outputs.items():
        module_at(model, path, KEY).register_forward_hook(partial(_mask_output, magnitude))


def hooked(handles: Iterable[Any]) -> ExitStack:
    """Return a context that removes the hooks of these torch ``handles`` when it ends."""
    stack = ExitStack()
    for handle in handles:
        stack.enter_context(handle)
    return stack


def module_at(model: Any, path: str, key: str) -> nn.Module:
    """Return the module at ``path``, which config.json names under ``key``. Raises ModelError where there is none."""
    name = module_path(model, path)
    if name is None:
        raise ModelError(f"config.json: `{key}`: the model has no layer {path}", "make the variant again")
    module: nn.Module = model.get_submodule(name)
    return module


def masked(values: torch.Tensor, magnitude: float) -> torch.Tensor:
    """Return ``values`` with zeros where their magnitude is at most ``magnitude``, which every dtype holds exactly."""
    return values.masked_fill(values.abs() <= magnitude, 0)


def _mask_input(magnitude: float, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (masked(args[0], magnitude), *args[1:])


def _mask_output(magnitude: float, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return masked(output, magnitude)
