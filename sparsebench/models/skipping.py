"""Models that compute with only some of their weights for each token: masks on the inputs or outputs of their modules.

The weights are the dense model's. Under ``sparsebench_skip``, config.json has thresholds by module path: in ``inputs``
for the inputs of linear layers (TEAL), in ``outputs`` for the outputs of activation functions (CATS). Values of a
magnitude up to the threshold become zero, and the weights that multiply them need not be read. Here the arithmetic
stays dense, to score what the method loses; ``runtime/engines/skip`` does not read the weights. Stock transformers
ignores the key and computes with all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError
from sparsebench.models.grouped import experts_of
from sparsebench.models.spellings import place_of

if TYPE_CHECKING:
    import torch
    from torch import nn

KEY = "sparsebench_skip"
INPUTS, OUTPUTS = "inputs", "outputs"


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
    stated = config.get(KEY)
    if stated is None:
        return None
    found = [stated.get(kind) for kind in (INPUTS, OUTPUTS)] if isinstance(stated, dict) else []
    tables = [one for one in found if isinstance(one, dict) and all(map(_is_magnitude, one.values()))]
    if len(tables) != 2:
        raise ModelError(f"config.json: `{KEY}` is damaged", "make the variant again")
    return SkipThresholds(*tables)


def skips(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json's model computes with only some of its weights, chosen by thresholds or a router."""
    return bool(skip_of(config) or experts_of(config))


def _is_magnitude(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def install(model: Any, config: Mapping[str, Any]) -> Any:
    """Hook the masks of config.json's thresholds into ``model``, in place, and return it.

    Raises ModelError where a module that config.json names is missing.
    """
    skip = skip_of(config)
    if skip:
        for path, magnitude in skip.inputs.items():
            module_at(model, path, KEY).register_forward_pre_hook(_Input(magnitude))
        for path, magnitude in skip.outputs.items():
            module_at(model, path, KEY).register_forward_hook(_Output(magnitude))
    return model


def module_at(model: Any, path: str, key: str) -> nn.Module:
    """Return the module at ``path``, which config.json names under ``key``. Raises ModelError where there is none."""
    name = place_of(model, path)
    if name is None:
        raise ModelError(f"config.json: `{key}`: the model has no layer {path}", "make the variant again")
    found: nn.Module = model.get_submodule(name)
    return found


def masked(values: torch.Tensor, magnitude: float) -> torch.Tensor:
    """Return ``values`` with zeros where their magnitude is at most ``magnitude``, which every dtype holds exactly."""
    return values.masked_fill(values.abs() <= magnitude, 0)


class _Input:
    """A hook that masks a layer's input."""

    def __init__(self, magnitude: float) -> None:
        self.magnitude = magnitude

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (masked(args[0], self.magnitude), *args[1:])


class _Output:
    """A hook that masks a module's output."""

    def __init__(self, magnitude: float) -> None:
        self.magnitude = magnitude

    def __call__(self, module: nn.Module, args: tuple[Any, ...], made: torch.Tensor) -> torch.Tensor:
        return masked(made, self.magnitude)
