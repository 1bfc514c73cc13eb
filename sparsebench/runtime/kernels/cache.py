"""A cache of keys and values with room for more tokens, in place of transformers' that is concatenated for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

GROWTH_TOKENS = 32
"""Tokens for which a cache gets room at a time; the library takes no less."""


@dataclass(eq=False)
class Store:
    """The keys (1, heads, size, room) and values (1, heads, room, size) of each block of a cache, for ``length`` tokens."""

    blocks: list[tuple[torch.Tensor, torch.Tensor]]
    length: int
    complete: bool = True
    """Whether all layers still are parts of it."""
    fresh: bool = True
    """Whether no token has been added since it was made or grew."""

    @property
    def room(self) -> int:
        """The tokens for which there is memory."""
        return self.blocks[0][1].shape[2]

    def add(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy a block's keys and values (1, heads, length, size), with room for more."""
        self.blocks.append(self._with_room(keys, values))

    def grow(self) -> None:
        """Get room for more tokens, block by block, so that little is held twice."""
        self.fresh = True
        for number in range(len(self.blocks)):
            self.blocks[number] = self._with_room(self.keys(number), self.values(number))

    def keys(self, block: int) -> torch.Tensor:
        """Return the keys of a block (1, heads, length, size)."""
        return self.blocks[block][0].transpose(2, 3)[:, :, : self.length]

    def values(self, block: int) -> torch.Tensor:
        """Return the values of a block (1, heads, length, size)."""
        return self.blocks[block][1][:, :, : self.length]

    def _with_room(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, heads, length, size = values.shape
        room = (length // GROWTH_TOKENS + 1) * GROWTH_TOKENS
        more_keys, more_values = keys.new_empty(1, heads, size, room), values.new_empty(1, heads, room, size)
        more_keys[..., :length] = keys.transpose(2, 3)
        more_values[:, :, :length] = values
        return more_keys, more_values


class GrowingLayer(DynamicLayer):
    """A block's part of a ``Store``. Once its keys or values are set, it is a part no more."""

    store: Store | None = None
    block = 0

    def join(self, store: Store) -> None:
        """Move the keys and values to the end of ``store``."""
        self.leave()
        self.block = len(store.blocks)
        store.add(self.__dict__.pop("keys"), self.__dict__.pop("values"))
        self.store = store

    def leave(self) -> None:
        """Leave the store, which no longer changes then: keep views of what it has."""
        if self.store:
            self.store.complete = False
            self.__dict__.update(keys=self.keys, values=self.values, store=None)

    @property  # type: ignore[override]
    def keys(self) -> Any:
        """The keys (1, heads, tokens, size), or None."""
        return self.store.keys(self.block) if self.store else self.__dict__["keys"]

    @keys.setter
    def keys(self, tensor: Any) -> None:
        self.leave()
        self.__dict__["keys"] = tensor

    @property  # type: ignore[override]
    def values(self) -> Any:
        """The values (1, heads, tokens, size), or None."""
        return self.store.values(self.block) if self.store else self.__dict__["values"]

    @values.setter
    def values(self, tensor: Any) -> None:
        self.leave()
        self.__dict__["values"] = tensor


def store_of(cache: Any, dtype: torch.dtype, heads: list[int], size: int) -> Store | None:
    """Return the store of transformers' cache, whose layers become parts of it; block i has ``heads[i]`` of ``size``.

    Return None where it holds no tokens, several sequences, or anything but layers that only grow.
    """
    layers = cache.layers
    if len(layers) != len(heads):
        return None
    store: Store | None = getattr(layers[0], "store", None)
    if store and store.complete and len(store.blocks) == len(layers):
        return store
    if any(type(layer) not in (DynamicLayer, GrowingLayer) for layer in layers):
        return None
    length = cache.get_seq_length()
    if not length:
        return None
    for layer, shared in zip(layers, heads, strict=True):
        for part in (layer.keys, layer.values):
            if part is None or part.shape != (1, shared, length, size) or part.dtype != dtype:
                return None
    store = Store([], length)
    for layer in layers:
        layer.__class__ = GrowingLayer
        layer.join(store)
    return store
