"""How a sentence encoder makes one vector from its tokens, read from the files that sentence-transformers writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsebench import bounded
from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.paths import name_beside

MODES = ("cls", "mean", "max", "mean_sqrt_len")
_TEXT_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""The names that sentence-transformers has given the file of a model's length and case; the first that exists counts."""
_SPELLINGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}


@dataclass(frozen=True, eq=False)
class Dense:
    """A layer behind the pooling: ``weight`` (outputs, inputs) and ``bias`` (outputs), float32."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    tanh: bool

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs (batch, outputs) for ``vectors`` (batch, inputs)."""
        bias = None if self.bias is None else self.bias.to(vectors.device)
        outputs = torch.nn.functional.linear(vectors, self.weight.to(vectors.device), bias)
        return outputs.tanh() if self.tanh else outputs


@dataclass(frozen=True)
class Pooling:
    """How token vectors become one vector.

    ``mode`` is one of MODES; ``dense`` are the layers behind it; ``normalize`` scales to length 1; ``max_length`` is in
    tokens, None: the model's.
    """

    mode: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    dense: tuple[Dense, ...] = ()

    def apply(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool hidden states (batch, tokens, width) where ``mask`` is 1 into vectors (batch, width), float32."""
        weights = mask.unsqueeze(-1).float()
        states = hidden.float()
        if self.mode == "cls":
            # The first token that is not padding, on whichever side the tokenizer pads.
            first = mask.int().argmax(dim=1)
            pooled = states[torch.arange(len(states), device=states.device), first]
        elif self.mode == "max":
            pooled = states.masked_fill(weights == 0, -torch.inf).amax(dim=1)
        else:
            length = weights.sum(dim=1)
            pooled = (states * weights).sum(dim=1) / (length if self.mode == "mean" else length.sqrt())
        for layer in self.dense:
            pooled = layer.apply(pooled)
        return torch.nn.functional.normalize(pooled) if self.normalize else pooled


def read_pooling(folder: Path) -> Pooling:
    """Read the pooling from ``modules.json`` and the files it names; without it, the mean over tokens.

    Raises UnsupportedError for a module or mode that is not implemented, and for a default prompt before every text;
    ModelError for a file that sentence-transformers does not write.
    """
    if not (folder / "modules.json").is_file():
        return Pooling()
    modules = bounded.read_json(folder / "modules.json")
    mode, normalize, dense = "mean", False, []
    for module in modules if isinstance(modules, list) else [modules]:
        if not isinstance(module, dict) or "type" not in module:
            raise ModelError(f"{folder / 'modules.json'}: a module without a `type`", "fetch the model again")
        kind = str(module["type"]).rsplit(".", 1)[-1]
        module_folder = (
            folder / name_beside(module.get("path"), folder / "modules.json")
            if kind in ("Pooling", "Dense")
            else folder
        )
        if kind == "Pooling":
            mode = _mode(_settings(module_folder / "config.json"), folder)
        elif kind == "Dense":
            if normalize:
                raise UnsupportedError(f"{folder.name}: a Dense layer behind Normalize is not implemented")
            dense.append(_dense(module_folder))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedError(f"{folder.name}: sentence-transformers module {kind} is not implemented")
    if _settings(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise UnsupportedError(
            f"{folder.name}: its default prompt (config_sentence_transformers.json) is not implemented"
        )
    path = next((folder / name for name in _TEXT_SETTINGS if (folder / name).exists()), folder / _TEXT_SETTINGS[0])
    settings = _settings(path)
    max_length, lower_case = settings.get("max_seq_length"), bool(settings.get("do_lower_case"))
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ModelError(f"{path}: `max_seq_length` is {max_length!r}, not a number of tokens", "fetch the model again")
    return Pooling(mode, normalize, max_length, lower_case, tuple(dense))


def _dense(folder: Path) -> Dense:
    config = _settings(folder / "config.json")
    activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if activation not in ("Tanh", "Identity"):
        raise UnsupportedError(
            f"{folder / 'config.json'}: activation {activation} is not implemented", "Tanh or Identity"
        )
    layer = Checkpoint(folder)
    shape = tuple(config.get(key) for key in ("out_features", "in_features"))
    if "linear.weight" not in layer.tensors or layer.tensors["linear.weight"].shape != shape:
        raise ModelError(
            f"{folder}: no linear.weight of shape {shape}, which config.json states", "fetch the model again"
        )
    bias = layer.load("linear.bias").float() if "linear.bias" in layer.tensors else None
    return Dense(layer.load("linear.weight").float(), bias, activation == "Tanh")


def _mode(config: dict[str, Any], folder: Path) -> str:
    modes_named = [
        key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value
    ]
    if "pooling_mode" in config:
        stated = config["pooling_mode"]
        modes_named = stated if isinstance(stated, list) else [stated]
    modes = [_SPELLINGS.get(name, name) for name in map(str, modes_named)] or ["mean"]
    if len(modes) > 1 or modes[0] not in MODES:
        raise UnsupportedError(
            f"{folder.name}: pooling {' + '.join(modes)} is not implemented", f"one of {', '.join(MODES)}"
        )
    return modes[0]


def _settings(path: Path) -> dict[str, Any]:
    return bounded.read_object(path) if path.is_file() else {}
