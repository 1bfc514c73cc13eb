"""A cache of keys and values with room for more tokens, in place of transformers' that is concatenated for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Tokens for which a cache gets room at a time."""


@dataclass(eq=False)
class Store:
    """The ``keys`` and ``values`` (1, heads, room, size) of each block of a cache, of which ``length`` tokens are in use."""

    buffers: list[dict[str, torch.Tensor]]
    length: int

    @property
    def room(self) -> int:
        """The tokens for which there is memory."""
        return self.buffers[0]["keys"].shape[2]

    def grow(self) -> None:
        """Get room for one token at least, block by block, so that little is held twice."""
        if self.length < self.room:
            return
        for parts in self.buffers:
            for name, part in parts.items():
                parts[name] = _with_room(part)


def _with_room(part: torch.Tensor) -> torch.Tensor:
    """Return a copy of keys or values with room for ROOM more tokens."""
    _, heads, length, size = part.shape
    larger = part.new_empty(1, heads, length + ROOM, size)
    larger[:, :, :length] = part
    return larger


class GrowingLayer(DynamicLayer):
    """A block's part of a ``Store``. Whoever sets its keys or values gives it tensors of its own again."""

    store: Store | None = None
    number = 0

    def join(self, store: Store) -> None:
        """Move the keys and values to the end of ``store``."""
        self.leave()
        self.number = len(store.buffers)
        store.buffers.append({name: _with_room(self.__dict__.pop(name)) for name in ("keys", "values")})
        self.store = store

    def leave(self) -> None:
        """Keep what the store has as tensors of this layer's own."""
        if self.store:
            self.__dict__.update(keys=self.keys, values=self.values, store=None)

    def _part(self, name: str) -> Any:
        if self.store:
            return self.store.buffers[self.number][name][:, :, : self.store.length]
        return self.__dict__[name]

    def _put(self, name: str, tensor: torch.Tensor | None) -> None:
        self.leave()
        self.__dict__[name] = tensor

    keys = property(lambda self: self._part("keys"), lambda self, tensor: self._put("keys", tensor))
    values = property(lambda self: self._part("values"), lambda self, tensor: self._put("values", tensor))


def store_of(cache: Any, dtype: torch.dtype, heads: list[int], size: int) -> Store | None:
    """Return the store of transformers' cache, whose layers become parts of it; block i has ``heads[i]`` of ``size``.

    Return None where it holds no tokens, several sequences, or anything but layers that only grow.
    """
    layers = cache.layers
    if len(layers) != len(heads) or any(type(layer) not in (DynamicLayer, GrowingLayer) for layer in layers):
        return None
    store: Store | None = getattr(layers[0], "store", None)
    if store and all(getattr(layer, "store", None) is store for layer in layers):
        return store
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
