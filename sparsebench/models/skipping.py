"""Models that compute with some of their weights for each token: masks on what their layers read or make.

The weights are the dense model's. Under ``sparsebench_skip`` config.json gives a magnitude for each of some modules: in
``inputs`` for what a linear layer reads (TEAL), in ``outputs`` for what an activation function gives (CATS). A value up to it
becomes zero, and the weights that would meet it need not be read. Here the arithmetic stays dense, so that scores say what the
method costs; ``runtime/engines/skip`` leaves the weights unread. Stock transformers does not know the key and computes with all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError
from sparsebench.models.grouped import experts_of

if TYPE_CHECKING:
    import torch
    from torch import nn

KEY = "sparsebench_skip"
INPUTS, OUTPUTS = "inputs", "outputs"


@dataclass(frozen=True)
class SkipThresholds:
    """Magnitudes up to which values count as zero, by the path of a module in the model that transformers builds.

    ``inputs`` are of linear layers, ``outputs`` of activation functions.
    """

    inputs: Mapping[str, float]
    outputs: Mapping[str, float]

    def config(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {KEY: {INPUTS: dict(self.inputs), OUTPUTS: dict(self.outputs)}}


def skip_of(config: Mapping[str, Any]) -> SkipThresholds | None:
    """What the model of a config.json skips; None where it computes with all of its weights.

    Raises ModelError for an entry that is not one of ours.
    """
    stated = config.get(KEY)
    if stated is None:
        return None
    found = [stated.get(kind) for kind in (INPUTS, OUTPUTS)] if isinstance(stated, dict) else []
    tables = [one for one in found if isinstance(one, dict) and all(map(_is_magnitude, one.values()))]
    if len(tables) != 2:
        raise ModelError(f"config.json: `{KEY}` is damaged", "make the variant again")
    return SkipThresholds(*tables)


def skips(config: Mapping[str, Any]) -> bool:
    """Whether the model of a config.json computes with some of its weights, chosen by thresholds or by a router."""
    return bool(skip_of(config) or experts_of(config))


def _is_magnitude(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def install(model: Any, config: Mapping[str, Any]) -> Any:
    """``model`` itself, with the masks that its config.json asks for, in place.

    Raises ModelError where a module that it names is not there.
    """
    skip = skip_of(config)
    if skip:
        for path, magnitude in skip.inputs.items():
            module_at(model, path, KEY).register_forward_pre_hook(_Input(magnitude))
        for path, magnitude in skip.outputs.items():
            module_at(model, path, KEY).register_forward_hook(_Output(magnitude))
    return model


def module_at(model: Any, path: str, key: str) -> nn.Module:
    """The module that config.json names under ``key``. Raises ModelError where the model has none."""
    name = place_of(model, path)
    if name is None:
        raise ModelError(f"config.json: `{key}`: the model has no layer {path}", "make the variant again")
    found: nn.Module = model.get_submodule(name)
    return found


def place_of(model: Any, path: str) -> str | None:
    """The name that the module at ``path`` has in ``model``, whose base model may stand in another; None where it has none."""
    prefix = f"{model.base_model_prefix}."
    names = {name for name, _ in model.named_modules()}
    return next((form for form in (path, prefix + path, path.removeprefix(prefix)) if form in names), None)


def masked(values: torch.Tensor, magnitude: float) -> torch.Tensor:
    """``values`` with zeros where they are no larger than ``magnitude``, which every precision holds exactly."""
    return values.masked_fill(values.abs() <= magnitude, 0)


class _Input:
    """A hook that masks what a layer reads."""

    def __init__(self, magnitude: float) -> None:
        self.magnitude = magnitude

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (masked(args[0], self.magnitude), *args[1:])


class _Output:
    """A hook that masks what a module gives."""

    def __init__(self, magnitude: float) -> None:
        self.magnitude = magnitude

    def __call__(self, module: nn.Module, args: tuple[Any, ...], made: torch.Tensor) -> torch.Tensor:
        return masked(made, self.magnitude)
