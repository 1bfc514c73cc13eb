"""Running the model's own forward up to a chosen block on a few samples, without computing the blocks before it.

A `StandIn` replaces every block. The one just before the chosen block returns the states that were kept of it, earlier
ones return NaN, so that a model whose code reads further back is noticed. Masks, positions and whatever happens between
blocks are thus computed by the model's own code, for a few samples only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.replay.skeleton import Stack
from sparsebench.models.shape.topology import CHOOSE_MAGNITUDE

Extras = tuple[Any, ...] | None
"""The values that a block returns beside its hidden states; None where it returns a bare tensor."""
BlockOutput = tuple[torch.Tensor, Extras]
"""A block's hidden states, (group, length, width), and its extras."""


@dataclass(frozen=True)
class Call:
    """The arguments with which the model calls a block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> torch.Tensor:
        """The block's input states, (group, length, width). Raises UnsupportedError where they have another name."""
        if not self.args and "hidden_states" not in self.kwargs:
            raise UnsupportedError("what a block reads is not called `hidden_states`", CHOOSE_MAGNITUDE)
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def reading(self, states: torch.Tensor) -> Call:
        """Return the same call with ``states`` as its hidden states."""
        if self.args:
            return Call((states, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, "hidden_states": states})

    def lacks_values(self, states: list[torch.Tensor]) -> bool:
        """Return whether an argument other than the hidden and encoder ``states`` has NaN: it was not kept."""
        return any(
            tensor.is_floating_point() and bool(tensor.isnan().any())
            for tensor in tensors_in([self.args, self.kwargs])
            if not any(tensor is state for state in states)
        )

    def other_storages(self, states: list[torch.Tensor]) -> set[int]:
        """Return the storages' addresses of arguments other than the hidden and encoder ``states``."""
        return storages_of([self.args, self.kwargs]) - storages_of(states)


class BlockReached(Exception):
    """Ends a forward at the chosen block, with its ``call``."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


class StandIn(torch.nn.Module):
    """A replacement of a block; attributes that the model's code reads from it are the block's own."""

    def __init__(self, forward_until: ForwardUntil, index: int, block: torch.nn.Module) -> None:
        super().__init__()
        self.forward_until, self.index = forward_until, index
        self.__dict__["block"] = block  # not as a submodule: its parameters have no storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is known of this block's outputs. Raises BlockReached at the chosen block."""
        return self.forward_until.answer(self.index, Call(args, kwargs))


class ForwardUntil:
    """One stack's forward, run up to a chosen block, with a `StandIn` for each block."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack.name
        self.block_count = len(stack.blocks)
        self.extra_counts: list[int | None] = [None] * self.block_count
        """For each block, the number of values that it returns beside its hidden states; None for a bare tensor."""
        self._target = 0
        self._next = 0
        self._before: BlockOutput | None = None
        self._module = stack.module
        for block in stack.blocks:
            parent, _, number = block.path.removeprefix(stack.prefix).rpartition(".")
            blocks = cast(torch.nn.ModuleList, stack.module.get_submodule(parent))
            blocks[int(number)] = StandIn(self, block.index, block.module)
        self.outside = {name: tensor for name, tensor in stack.module.named_parameters() if not tensor.is_meta}
        """The parameters outside the blocks, by name."""

    def call_of(self, block: int, before: BlockOutput | None, arguments: Mapping[str, torch.Tensor]) -> Call:
        """Return the stack's call of ``block`` on these arguments, where the block before it returned ``before``.

        Raises UnsupportedError when the model never runs the block, or runs blocks out of order.
        """
        try:
            self._run(block, before, arguments)
        except BlockReached as reached:
            return reached.call
        raise UnsupportedError(f"{self.stack} block {block}: the model never runs it", CHOOSE_MAGNITUDE)

    def result_after(self, before: BlockOutput, arguments: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the stack's result (group, length, width), with final norm, where its last block returned ``before``.

        Raises UnsupportedError when the model runs blocks out of order.
        """
        return self._run(self.block_count, before, arguments)[0]

    def _run(self, target: int, before: BlockOutput | None, arguments: Mapping[str, torch.Tensor]) -> Any:
        self._target, self._next, self._before = target, 0, before
        return self._module(**arguments)

    def answer(self, index: int, call: Call) -> Any:
        """Return what the stand-in of block ``index`` returns. Raises BlockReached at the chosen block."""
        if index != self._next:
            raise UnsupportedError(f"{self.stack} block {index}: it runs out of order", CHOOSE_MAGNITUDE)
        self._next += 1
        if index == self._target:
            raise BlockReached(call)
        if index == self._target - 1:
            assert self._before is not None
            states, extras = self._before
        else:
            extra_count = self.extra_counts[index]
            states = call.hidden.new_full((), torch.nan).expand(call.hidden.shape)
            extras = None if extra_count is None else (None,) * extra_count
        return join_output(states, extras)


def split_output(returned: Any) -> BlockOutput:
    """Return a block's hidden states and the other values that it returned."""
    if isinstance(returned, torch.Tensor):
        return returned, None
    return returned[0], tuple(returned[1:])


def join_output(states: torch.Tensor, extras: Extras) -> Any:
    """Return what a block returns, from its hidden states and the other values: the reverse of ``split_output``."""
    return states if extras is None else (states, *extras)


def storages_of(value: Any) -> set[int]:
    """Return the addresses of the storages of every tensor in nested arguments."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_in(value)}


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return every tensor in nested arguments."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, (list, tuple)) else []
