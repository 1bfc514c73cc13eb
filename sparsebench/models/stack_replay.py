"""Replaying one side of a model: its samples in small groups, and every stream's hidden states between two blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.gather import Gatherer, InputsSeen
from sparsebench.models.partial import Call, Extras, PartialForward, split, tensors_in
from sparsebench.models.spill import States
from sparsebench.models.topology import LOOKS_AT_WEIGHTS

if TYPE_CHECKING:
    from sparsebench.models.blocks import SkeletonBlock, Stack


@dataclass(frozen=True)
class StackTokens:
    """The tokens that one side reads: ``ids`` (samples, length) int64 and ``mask`` of the same shape, bool."""

    ids: torch.Tensor
    mask: torch.Tensor


class StackReplay:
    """The blocks of one side, run one after another for several streams over ``groups`` of samples.

    Every block reads the kept outputs of the one before it. The first reads the embeddings of the texts, which
    ``begin`` looks up once for all streams. On a decoder's side, ``encoder`` is the finished encoder. ``dropped``
    streams do not run.
    """

    def __init__(
        self,
        stack: Stack,
        texts: StackTokens,
        states: States,
        groups: Sequence[slice],
        encoder: StackReplay | None = None,
    ) -> None:
        self.stack = stack
        self.texts = texts
        self.states = states
        self.groups = groups
        self.encoder = encoder
        self.dropped: set[int] = set() if encoder is None else encoder.dropped
        self.partial = PartialForward(stack)
        streams = states.streams
        self._extras: list[list[Extras]] = [[None] * len(groups) for _ in range(streams)]
        self._next_extras: list[list[Extras]] = [[None] * len(groups) for _ in range(streams)]
        self._passed: tuple[bool, ...] | None = None
        self._pool: list[torch.Tensor] = []

    @property
    def device(self) -> torch.device:
        """The device that the blocks run on."""
        return self.texts.ids.device

    @property
    def live(self) -> list[int]:
        """The streams that were not dropped."""
        return [stream for stream in range(self.states.streams) if stream not in self.dropped]

    def begin(self) -> None:
        """Embed the texts and keep the first block's inputs, in the first stream's states."""
        for rows in self.groups:
            forward, _ = self._forward(self.live[0], rows)  # a decoder's forward reads a live stream's encoder states
            hidden = self.partial.to(0, None, forward, lookup=True).hidden
            if not _finite(hidden, self.texts.mask[rows]):
                raise self._broken(f"inputs of {self.stack.side} block 0")
            self.states.write(0, rows, hidden)
        self.states.swap()

    def run(
        self, place: SkeletonBlock, weights: Mapping[str, torch.Tensor], stream: int, gatherer: Gatherer | None = None
    ) -> None:
        """Run a block with these weights on a stream's states and keep its outputs as the next block's inputs.

        A gatherer that needs inputs only may end the run before there are outputs.
        """
        for number, rows in enumerate(self.groups):
            call, encoder = self._call(place.index, stream, number)
            context = (
                gatherer.group(*self._tokens(rows), call.storages(self._known(call, encoder))) if gatherer else None
            )
            with context or nullcontext():
                try:
                    returned = functional_call(place.module, dict(weights), call.args, call.kwargs)
                except InputsSeen:
                    continue
            hidden, extras = split(returned)
            self._check(place, hidden, rows)
            self.partial.forms[place.index] = None if extras is None else len(extras)
            if extras is not None:
                extras = self._kept(place.index, stream, rows, hidden, extras)
            self.states.write(stream, rows, hidden)
            self._next_extras[stream][number] = extras

    def forward(
        self, place: SkeletonBlock, weights: Mapping[str, torch.Tensor], stream: int, number: int
    ) -> torch.Tensor:
        """Return a block's outputs for one group of a stream's states, (group, length, width); nothing is kept."""
        with torch.no_grad():
            call, _ = self._call(place.index, stream, number)
        return split(functional_call(place.module, dict(weights), call.args, call.kwargs))[0]

    def swap(self) -> None:
        """Finish a block: its outputs become the next block's inputs."""
        self.states.swap()
        self._extras, self._next_extras = self._next_extras, self._extras

    def result(self, stream: int, rows: slice) -> torch.Tensor:
        """Return the side's final states of these samples, after final norm and projection: (group, length, width)."""
        forward, _ = self._forward(stream, rows)
        known = self.states.read(stream, rows), self._extras[stream][self.groups.index(rows)]
        for lookup in (False, True):
            found = self.partial.past(known, forward, lookup)
            if _finite(found, self.texts.mask[rows]):
                return found
        raise self._broken(f"what the {self.stack.side} makes of its last block")

    def finish(self) -> None:
        """Replace the states of the last block by the side's results."""
        self.states.shrink()  # results may have another width and precision
        for stream in self.live:
            for rows in self.groups:
                self.states.write(stream, rows, self.result(stream, rows))
        self.states.swap()
        self.states.shrink()

    def _forward(self, stream: int, rows: slice) -> tuple[Callable[[], Any], torch.Tensor | None]:
        """Return a call of the side's own forward on a group, and the encoder's states that the forward gets."""
        given: dict[str, torch.Tensor] = {
            "input_ids": self.texts.ids[rows],
            "attention_mask": self.texts.mask[rows].long(),
        }
        states = None
        if self.encoder is not None:
            states = self.encoder.states.read(stream, rows)
            given["encoder_hidden_states"] = states
            given["encoder_attention_mask"] = self.encoder.texts.mask[rows].long()
        return (lambda: self.stack.module(**given)), states

    def _call(self, index: int, stream: int, number: int) -> tuple[Call, torch.Tensor | None]:
        rows = self.groups[number]
        forward, encoder = self._forward(stream, rows)
        states = self.states.read(stream if index else 0, rows)
        known = states, self._extras[stream][number]
        # Embeddings are looked up only where needed: DeBERTa's convolution reads them again after the first block.
        for lookup in (False, True):
            call = self.partial.to(index, known, forward, lookup)
            call = call if index else call.reading(states)
            if _finite(call.hidden, self.texts.mask[rows]) and not call.lacks(self._known(call, encoder)):
                return call, encoder
        raise UnsupportedError(
            f"{self.stack.side} block {index}: it needs values from earlier blocks than the one before it, "
            "so it cannot be run block by block",
            LOOKS_AT_WEIGHTS,
        )

    def _broken(self, what: str) -> ModelError:
        """Return the error for ``what``, which is not finite; it names the stored tensor that is not finite, if any."""
        stored = (name for name, tensor in self.partial.outside.items() if not bool(tensor.isfinite().all()))
        name = next(stored, None)
        named = f"{self.stack.prefix}{name}" if name else what
        return ModelError(f"{named}: NaN or infinite", "repair the checkpoint, or use bfloat16 or float32")

    @staticmethod
    def _known(call: Call, encoder: torch.Tensor | None) -> list[torch.Tensor]:
        return [call.hidden] if encoder is None else [call.hidden, encoder]

    def _tokens(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.texts.mask[rows], None if self.encoder is None else self.encoder.texts.mask[rows]

    def _check(self, place: SkeletonBlock, hidden: torch.Tensor, rows: slice) -> None:
        name = f"{place.side} block {place.index}"
        if hidden.shape[:2] != self.texts.ids[rows].shape:
            raise UnsupportedError(f"{name}: it returns {tuple(hidden.shape)}, not one row per token")
        if not _finite(hidden, self.texts.mask[rows]):
            raise ModelError(f"{name}: what it returns is NaN or infinite", "use bfloat16 or float32")

    def _kept(self, index: int, stream: int, rows: slice, hidden: torch.Tensor, extras: tuple[Any, ...]) -> Extras:
        """Return the extras with None for those that the model does not pass to later blocks.

        T5's position bias is passed on; attention weights are not. The first block shows which are. Equal extras of
        several groups are stored once.
        """
        if self._passed is None:
            used: set[int] = set()
            if index + 1 < self.partial.length:
                forward, _ = self._forward(stream, rows)
                after = self.partial.to(index + 1, (hidden, extras), forward)
                used = {tensor.untyped_storage().data_ptr() for tensor in tensors_in([after.args, after.kwargs])}
            self._passed = tuple(isinstance(e, torch.Tensor) and e.untyped_storage().data_ptr() in used for e in extras)
        return tuple(self._one(extra) if keep else None for extra, keep in zip(extras, self._passed, strict=True))

    def _one(self, extra: torch.Tensor) -> torch.Tensor:
        for other in self._pool:
            if other is extra or (other.shape == extra.shape and torch.equal(other, extra)):
                return other
        self._pool = [extra, *self._pool[:3]]
        return extra


def _finite(states: torch.Tensor, mask: torch.Tensor) -> bool:
    """Return whether every token's states (group, length, width) are finite; padding may hold anything."""
    sums = states.sum(-1, dtype=torch.float32)
    return bool((sums.isfinite() | ~mask).all())
