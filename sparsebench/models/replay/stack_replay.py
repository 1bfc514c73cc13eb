"""Replaying one stack of a model: its samples in small groups, and every stream's states between two blocks."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.replay.forward_until import BlockOutput, Call, Extras, ForwardUntil, split_output, storages_of
from sparsebench.models.replay.gather import Gatherer, InputsSeen
from sparsebench.models.replay.skeleton import SkeletonBlock, Stack
from sparsebench.models.shape.topology import CHOOSE_MAGNITUDE


@dataclass
class _Kept:
    """What one stream's block has read or written: its states and, by a group's first sample, the group's extras."""

    states: torch.Tensor | None = None
    extras: dict[int, Extras] = field(default_factory=dict)


class States:
    """For each stream, the states that the next block reads and those that it writes, each (samples, length, width).

    Beside them are the extras of each group of samples.

    With a ``folder`` they are memory-mapped files there, unlinked at once and freed with their last tensor, so that
    anonymous memory does not grow. A buffer is made when it is first written. Copies that are read are on ``device``,
    and so are buffers without a ``folder``.
    """

    def __init__(self, streams: int, samples: int, folder: Path | None = None, device: str = "cpu") -> None:
        self.device = device
        self.samples = samples
        self.folder = folder
        self.streams = streams
        self._read = [_Kept() for _ in range(streams)]
        self._write = [_Kept() for _ in range(streams)]
        self._shared = False

    def read(self, stream: int, rows: slice) -> torch.Tensor:
        """Return a copy of the states (group, length, width) of a group of samples; the model may write into it."""
        return self._copy(self._read[0 if self._shared else stream], rows)

    def output(self, stream: int, rows: slice) -> BlockOutput:
        """Return what the last finished block returned for a group of samples; the states are a copy, as in ``read``."""
        return self.read(stream, rows), self._read[stream].extras.get(rows.start)

    def written(self, stream: int, rows: slice) -> torch.Tensor:
        """Return a copy of a group's states that were written since the last ``swap``."""
        return self._copy(self._write[stream], rows)

    def _copy(self, kept: _Kept, rows: slice) -> torch.Tensor:
        assert kept.states is not None, "read before anything was written"
        return kept.states[rows].to(self.device, copy=True)

    def write(self, stream: int, rows: slice, values: torch.Tensor, extras: Extras = None) -> None:
        """Keep a group's new states and extras until ``swap`` makes them readable.

        Raises UnsupportedError when groups differ in dtype, length or width.
        """
        kept = self._write[stream]
        if kept.states is None:
            kept.states = self._buffer(values)
        states = kept.states
        if _differ(states, values):
            raise UnsupportedError(
                f"hidden states of a block are {tuple(states.shape[1:])} {states.dtype} in one group of samples and "
                f"{tuple(values.shape[1:])} {values.dtype} in another"
            )
        states[rows] = values
        kept.extras[rows.start] = extras

    def swap(self) -> None:
        """Make the written states those that are read from now on."""
        self._read, self._write = self._write, self._read
        self._shared = False
        # Embeddings may have a lower precision than the outputs of the first block.
        for new, old in zip(self._read, self._write, strict=True):
            if new.states is not None and old.states is not None and _differ(new.states, old.states):
                old.states = None

    def share(self) -> None:
        """Make the first stream's written states those that every stream reads, until the next ``swap``."""
        self.swap()
        self._shared = True

    def free_write_buffers(self) -> None:
        """Free the write buffers."""
        for kept in self._write:
            kept.states = None

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        shape = (self.samples, *like.shape[1:])
        if self.folder is None:
            return torch.empty(shape, dtype=like.dtype, device=self.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        size = math.prod(shape)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="states-") as file:
            try:
                # Writing into a mapping of a file with holes ends in SIGBUS when the disk is full.
                os.posix_fallocate(file.fileno(), 0, size * like.dtype.itemsize)
            except OSError as error:
                problem = f"no room for {size * like.dtype.itemsize} bytes of hidden states ({error.strerror})"
                raise ModelError(f"{self.folder}: {problem}", "free some space, or use fewer samples") from error
            return torch.from_file(file.name, shared=True, size=size, dtype=like.dtype).view(shape)


def _differ(states: torch.Tensor, others: torch.Tensor) -> bool:
    """Return whether one has another dtype, length or width than the other; the number of samples may be another."""
    return (states.dtype, states.shape[1:]) != (others.dtype, others.shape[1:])


@dataclass(frozen=True)
class StackTokens:
    """The tokens that one stack reads: ``ids`` (samples, length) int64 and ``mask`` of the same shape, bool."""

    ids: torch.Tensor
    mask: torch.Tensor


class StackReplay:
    """The blocks of one stack, run one after another for several streams over ``groups`` of samples.

    Every block reads the kept outputs of the one before it. The first reads the embeddings of the tokens, which
    ``begin`` looks up once for all streams. For a decoder, ``encoder`` is the finished encoder. ``dropped_streams``
    streams do not run.
    """

    def __init__(
        self,
        stack: Stack,
        tokens: StackTokens,
        states: States,
        groups: Sequence[slice],
        encoder: StackReplay | None = None,
    ) -> None:
        self.stack = stack
        self.tokens = tokens
        self.states = states
        self.groups = groups
        self.encoder = encoder
        self.dropped_streams: set[int] = set() if encoder is None else encoder.dropped_streams
        self.forward_until = ForwardUntil(stack)
        self._passed_on: tuple[bool, ...] | None = None
        self._pool: list[torch.Tensor] = []

    @property
    def device(self) -> torch.device:
        """The device that the blocks run on."""
        return self.tokens.ids.device

    @property
    def live_streams(self) -> list[int]:
        """The streams that were not dropped."""
        return [stream for stream in range(self.states.streams) if stream not in self.dropped_streams]

    def begin(self) -> None:
        """Embed the tokens and keep the first block's inputs, in the first stream's states."""
        for rows in self.groups:
            # A decoder's forward reads a live stream's encoder states.
            hidden = self.forward_until.call_of(0, None, self._arguments(self.live_streams[0], rows)).hidden
            if not _finite(hidden, self.tokens.mask[rows]):
                raise self._not_finite(f"inputs of {self.stack.name} block 0")
            self.states.write(0, rows, hidden)
        self.states.share()

    def run(
        self, block: SkeletonBlock, weights: Mapping[str, torch.Tensor], stream: int, gatherer: Gatherer | None = None
    ) -> None:
        """Run a block with these weights on a stream's states and keep its outputs as the next block's inputs.

        A gatherer that needs inputs only may end the run before there are outputs.
        """
        for rows in self.groups:
            call, states = self._call(block.index, stream, rows)
            context: Any = nullcontext()
            if gatherer:
                encoder_mask = None if self.encoder is None else self.encoder.tokens.mask[rows]
                context = gatherer.micro_batch(self.tokens.mask[rows], encoder_mask, call.other_storages(states))
            with context:
                try:
                    returned = functional_call(block.module, dict(weights), call.args, call.kwargs)
                except InputsSeen:
                    continue
            hidden, extras = split_output(returned)
            self._check_output(block, hidden, rows)
            self.forward_until.extra_counts[block.index] = None if extras is None else len(extras)
            if extras is not None:
                extras = self._without_unused(block.index, stream, rows, hidden, extras)
            self.states.write(stream, rows, hidden, extras)

    def forward(
        self, block: SkeletonBlock, weights: Mapping[str, torch.Tensor], stream: int, rows: slice
    ) -> torch.Tensor:
        """Return a block's outputs for one group of a stream's states, (group, length, width); nothing is kept."""
        with torch.no_grad():
            call, _ = self._call(block.index, stream, rows)
        return split_output(functional_call(block.module, dict(weights), call.args, call.kwargs))[0]

    def result(self, stream: int, rows: slice) -> torch.Tensor:
        """Return the stack's final states of these samples, after final norm and projection: (group, length, width)."""
        result = self.forward_until.result_after(self.states.output(stream, rows), self._arguments(stream, rows))
        if not _finite(result, self.tokens.mask[rows]):
            raise self._not_finite(f"what the {self.stack.name} makes of its last block")
        return result

    def finish(self) -> None:
        """Replace the states of the last block by the stack's results."""
        self.states.free_write_buffers()  # results may have another width and precision
        for stream in self.live_streams:
            for rows in self.groups:
                self.states.write(stream, rows, self.result(stream, rows))
        self.states.swap()
        self.states.free_write_buffers()

    def _arguments(self, stream: int, rows: slice) -> dict[str, torch.Tensor]:
        """Return the arguments of the stack's own forward on a group of samples."""
        arguments = {"input_ids": self.tokens.ids[rows], "attention_mask": self.tokens.mask[rows].long()}
        if self.encoder is not None:
            arguments["encoder_hidden_states"] = self.encoder.states.read(stream, rows)
            arguments["encoder_attention_mask"] = self.encoder.tokens.mask[rows].long()
        return arguments

    def _call(self, index: int, stream: int, rows: slice) -> tuple[Call, list[torch.Tensor]]:
        """Return how the model calls a block on a group of samples, and the call's hidden and encoder states."""
        arguments = self._arguments(stream, rows)
        before = self.states.output(stream, rows)
        call = self.forward_until.call_of(index, before, arguments)
        if index == 0:
            call = call.reading(before[0])
        states = [call.hidden]
        if self.encoder is not None:
            states.append(arguments["encoder_hidden_states"])
        if not _finite(call.hidden, self.tokens.mask[rows]) or call.lacks_values(states):
            raise UnsupportedError(
                f"{self.stack.name} block {index}: it needs values from earlier blocks than the one before it, "
                "so it cannot be run block by block",
                CHOOSE_MAGNITUDE,
            )
        return call, states

    def _not_finite(self, culprit: str) -> ModelError:
        """Return the error for ``culprit``, which is not finite; it names the stored tensor that is not finite, if any."""
        for name, tensor in self.forward_until.outside.items():
            if not bool(tensor.isfinite().all()):
                culprit = f"{self.stack.prefix}{name}"
                break
        return ModelError(f"{culprit}: NaN or infinite", "repair the checkpoint, or use bfloat16 or float32")

    def _check_output(self, block: SkeletonBlock, hidden: torch.Tensor, rows: slice) -> None:
        name = f"{block.stack} block {block.index}"
        if hidden.shape[:2] != self.tokens.ids[rows].shape:
            raise UnsupportedError(f"{name}: it returns {tuple(hidden.shape)}, not one row per token")
        if not _finite(hidden, self.tokens.mask[rows]):
            raise ModelError(f"{name}: what it returns is NaN or infinite", "use bfloat16 or float32")

    def _without_unused(
        self, index: int, stream: int, rows: slice, hidden: torch.Tensor, extras: tuple[Any, ...]
    ) -> Extras:
        """Return the extras with None for those that the model does not pass to later blocks.

        T5's position bias is passed on; attention weights are not. The first block shows which are. Equal extras of
        several groups are stored once.
        """
        if self._passed_on is None:
            used_storages: set[int] = set()
            if index + 1 < self.forward_until.block_count:
                call = self.forward_until.call_of(index + 1, (hidden, extras), self._arguments(stream, rows))
                used_storages = call.other_storages([])
            self._passed_on = tuple(bool(storages_of([extra]) & used_storages) for extra in extras)
        return tuple(
            self._pooled(extra) if passed else None for extra, passed in zip(extras, self._passed_on, strict=True)
        )

    def _pooled(self, extra: torch.Tensor) -> torch.Tensor:
        for known in self._pool:
            if known is extra or (known.shape == extra.shape and torch.equal(known, extra)):
                return known
        self._pool = [extra, *self._pool[:3]]
        return extra


def _finite(states: torch.Tensor, mask: torch.Tensor) -> bool:
    """Return whether every token's states (group, length, width) are finite; padding may hold anything."""
    sums = states.sum(-1, dtype=torch.float32)
    return bool((sums.isfinite() | ~mask).all())
