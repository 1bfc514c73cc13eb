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
from collections.abc import Mapping
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


def thresholds_of(config: Mapping[str, Any]) -> SkipThresholds | None:
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

    def name(self, tensor: str) -> str:
        """Return the checkpoint's name of the tensor ``tensor`` of the part's grouping."""
        return f"{self.down}.moe.{tensor}"


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

    @classmethod
    def parse(cls, entry: Any) -> ExpertsConfig:
        """Return what an entry in config.json says.

        Raises KeyError, TypeError or ValueError for an entry that ``config`` would not write.
        """
        parts = tuple(FeedForward(**part) for part in entry["parts"])
        config = cls(**{**entry, "parts": parts})
        if config.router not in ROUTERS:
            raise ValueError(config.router)
        if not all(type(number) is int for number in (config.experts, config.active, config.shared)):
            raise ValueError("a number of experts is no integer")
        if config.active < 1 or not 0 <= config.shared <= config.active <= config.experts:
            raise ValueError("more or fewer experts than there are")
        if not all(isinstance(path, str) for part in parts for path in asdict(part).values()):
            raise ValueError("the path of a layer is no text")
        return config


def experts_of(config: Mapping[str, Any]) -> ExpertsConfig | None:
    """Return how the model of a config.json groups its neurons; None where it does not.

    Raises ModelError for an entry that sparsebench would not write.
    """
    entry = config.get(EXPERTS_KEY)
    if entry is None:
        return None
    try:
        return ExpertsConfig.parse(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json: `{EXPERTS_KEY}` is damaged", "make the variant again") from error


def skips_weights(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json's model computes with only some of its weights, chosen by thresholds or a router."""
    return bool(thresholds_of(config) or experts_of(config))


def _is_magnitude(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def install_thresholds(model: Any, config: Mapping[str, Any]) -> None:
    """Hook the masks of config.json's thresholds into ``model``, in place.

    Raises ModelError where a module that config.json names is missing.
    """
    thresholds = thresholds_of(config) or SkipThresholds({}, {})
    for path, magnitude in thresholds.inputs.items():
        module_at(model, path, KEY).register_forward_pre_hook(partial(_mask_input, magnitude))
    for path, magnitude in thresholds.outputs.items():
        module_at(model, path, KEY).register_forward_hook(partial(_mask_output, magnitude))


def module_at(model: Any, path: str, key: str) -> nn.Module:
    """Return the module at ``path``, which config.json names under ``key``. Raises ModelError where there is none."""
    name = module_path(model, path)
    if name is None:
        raise ModelError(f"config.json: `{key}`: the model has no layer {path}", "make the variant again")
    return model.get_submodule(name)


def masked(values: torch.Tensor, magnitude: float) -> torch.Tensor:
    """Return ``values`` with zeros where their magnitude is at most ``magnitude``, which every dtype holds exactly."""
    return values.masked_fill(values.abs() <= magnitude, 0)


def _mask_input(magnitude: float, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (masked(args[0], magnitude), *args[1:])


def _mask_output(magnitude: float, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return masked(output, magnitude)
