"""Hooks on the inputs or outputs of a block's modules, row by row, while calibration text goes through the block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, Refusal, UnsupportedError
from sparsebench.models.modules.hooks import removing_hooks
from sparsebench.models.shape.architectures import is_mixture
from sparsebench.models.shape.topology import Part

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sparsebench.models.replay.blockwise import Block

_UNLISTED_ACTIVATIONS = frozenset({"bloom", "mpt"})
"""Model types whose activation function is not a module of transformers' table ``ACT2CLS``."""
_CHOOSE_WITHOUT_EXPERTS = "choose a model without experts"
_CHOOSE_ANOTHER = "choose another model; `skip: teal` looks at what linear layers read"

Receiver = Callable[["torch.Tensor"], None]
"""A function that receives the rows of some samples' tokens without padding: (tokens, width)."""


class ActivationHooks:
    """Passes the inputs (with ``outputs``, the outputs) of some modules to functions while the block runs once.

    Raises ModelError, naming the module, for NaN and infinite ones.
    ``receivers`` has the function of each module by its path in the block. A module that runs more than once, or gets
    anything but one row for each token, is not among ``complete``. Modules that read DeBERTa's positions are examples.
    """

    def __init__(self, block: Block, receivers: Mapping[str, Receiver], outputs: bool = False) -> None:
        self.block, self.receivers, self.outputs = block, receivers, outputs
        self._cross = {id(reader.module): reader.cross for reader in block.readers.values()}
        self._calls = dict.fromkeys(receivers, 0)
        self._irregular: set[str] = set()

    def advance(self) -> None:
        """Run the unchanged block with the hooks in place."""
        with removing_hooks(map(self._hook, self.receivers)):
            self.block.advance(0, {})

    @property
    def complete(self) -> list[str]:
        """The paths of the modules that ran once for each group of samples, with one row for each token."""
        return [
            path
            for path in self.receivers
            if path not in self._irregular and self._calls[path] == len(self.block.samples)
        ]

    def _hook(self, path: str) -> Any:
        module = self.block.module.get_submodule(path)
        pass_on = self._counting_receiver(path, self._cross.get(id(module), False))
        if self.outputs:
            return module.register_forward_hook(lambda _, args, outputs: pass_on(outputs))
        return module.register_forward_pre_hook(lambda _, args: pass_on(args[0]))

    def _counting_receiver(self, path: str, cross: bool) -> Receiver:
        def receive(values: torch.Tensor) -> None:
            group = self._calls[path]
            self._calls[path] += 1
            if group >= len(self.block.samples):
                return
            mask = self.block.mask(self.block.samples[group], cross)
            if values.shape[:-1] in (mask.shape, (mask.numel(),)):
                rows = values.reshape(-1, values.shape[-1])[mask.reshape(-1)]
                self._check_finite(path, rows)
                self.receivers[path](rows)
            else:
                self._irregular.add(path)

        return receive

    def _check_finite(self, path: str, rows: torch.Tensor) -> None:
        if not bool(rows.isfinite().all()):
            raise ModelError(
                f"{self.block.path}.{path}: an activation is NaN or infinite",
                "use `compute_dtype: float32`, or check the weights",
            )


def layer_paths(block: Block) -> dict[str, str]:
    """Return the path in the block of each prunable matrix's layer, by the matrix's name."""
    path_of = {id(module): path for path, module in block.module.named_modules()}
    return {name: path_of[id(reader.module)] for name, reader in block.readers.items()}


def activation_path(module: nn.Module, label: str) -> str:
    """Return the path in a block of its activation function. Raises UnsupportedError unless there is exactly one."""
    from transformers.activations import ACT2CLS

    kinds = {kind[0] if isinstance(kind, tuple) else kind for kind in ACT2CLS.values()}
    functions = [path for path, child in module.named_modules() if type(child) in kinds]
    if len(functions) != 1:
        raise UnsupportedError(
            f"{label}: expected exactly one activation function, found {len(functions)}", _CHOOSE_ANOTHER
        )
    return functions[0]


def hooks_refusal(config: Mapping[str, Any], activations: bool) -> Refusal | None:
    """Return why values inside a model's blocks cannot be observed, as far as its config.json tells.

    ``activations`` asks for the outputs of activation functions too.
    """
    kind = str(config.get("model_type"))
    if is_mixture(config):
        return Refusal(f"{kind}: it is a mixture of experts", _CHOOSE_WITHOUT_EXPERTS)
    if activations and kind in _UNLISTED_ACTIVATIONS:
        return Refusal(f"{kind}: its activation function is not in transformers' table of activations", _CHOOSE_ANOTHER)
    return None


def refuse_experts(parent: Path, parts: Mapping[str, Part]) -> None:
    """Raise UnsupportedError, naming a tensor, where ``parts`` show that the model is a mixture of experts."""
    for name, part in parts.items():
        if part.experts or part.kind == "router":
            raise UnsupportedError(f"{parent}: it is a mixture of experts ({name})", _CHOOSE_WITHOUT_EXPERTS)
