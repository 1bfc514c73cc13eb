"""Running calibration text through a model block by block, with one block's weights in memory at a time.

The model's own code runs (see ``forward_until``). A visitor gets each block's weights and the statistics of its linear
layers' inputs. A stream is one version of the model: its hidden states have passed through its own, perhaps pruned,
blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from sparsebench import devices
from sparsebench.errors import ModelError
from sparsebench.manifest.names import Family
from sparsebench.models.files import precision
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules import moefied
from sparsebench.models.replay.batch import Batch
from sparsebench.models.replay.gather import Gatherer, InputStatistics, PrunableLayer
from sparsebench.models.replay.skeleton import Skeleton, SkeletonBlock, Stack, build_skeleton, fill_skeleton, move
from sparsebench.models.replay.stack_replay import StackReplay, StackTokens, States
from sparsebench.models.shape.topology import View

TOKENS_AT_ONCE = 2048
"""Tokens that run through a block at a time, in whole samples: this bounds the activations within a block."""
STATISTICS = 2 << 30
"""Bytes of experts' Gram matrices that are held at once: where all take more, the block runs several times."""

IN_MEMORY = 2 << 30
"""Bytes of hidden states that are held in memory where there is a folder to keep more in."""


class Block:
    """One transformer block with its weights in memory, valid while it is visited.

    ``tensors`` are all of the checkpoint's tensors of the block, as stored. ``groups`` are the names of prunable
    matrices that read the same input, known after the first ``observe``. ``same_inputs`` is True while all streams have the
    same inputs.
    """

    def __init__(
        self, replay: StackReplay, block: SkeletonBlock, tensors: dict[str, torch.Tensor], same_inputs: bool
    ) -> None:
        self.stack = block.stack
        self.index = block.index
        self.path = block.path
        """The block's module path in the model that transformers builds."""
        self.module = block.module
        """transformers' module of the block, without storage: for hooks while it is observed or advanced."""
        self.readers: Mapping[str, PrunableLayer] = block.prunable
        """The linear layers of the block's prunable matrices, by the matrices' names."""
        self.samples: Sequence[slice] = replay.groups
        """The groups of samples that run at a time."""
        self.tensors = tensors
        self.groups: tuple[tuple[str, ...], ...] = ()
        self.same_inputs = same_inputs
        self.done: set[int] = set()
        self.changed = False
        self._replay = replay
        self._block = block

    def portions(self, gram: bool) -> list[set[str]]:
        """Return the names of prunable matrices in groups whose statistics are held in memory together.

        All are one group, unless with ``gram`` the Gram matrices of the experts take more than `STATISTICS` bytes.
        """
        portions: list[set[str]] = [set()]
        room, last = STATISTICS, ""
        for name, reader in self.readers.items():
            size = 4 * reader.width**2 if gram and reader.experts is not None and reader.input_key != last else 0
            if size > room and room < STATISTICS:
                portions.append(set())
                room = STATISTICS
            room, last = room - size, reader.input_key
            portions[-1].add(name)
        return portions

    def observe(
        self,
        stream: int,
        gram: bool,
        only_inputs: bool = False,
        names: Collection[str] | None = None,
        sums: bool = False,
    ) -> dict[str, InputStatistics]:
        """Run the block as stored on the stream's states, and return the input statistics of its prunable matrices.

        They are those of ``names``, if given; matrices with the same input share one object. The block's outputs become
        the stream's next inputs. With ``only_inputs`` they may not be computed, and the stream must be advanced. Raises
        ModelError, with its name, when something is NaN or infinite.
        """
        chosen = {name: reader for name, reader in self.readers.items() if names is None or name in names}
        gatherer = Gatherer(chosen, gram, only_inputs, sums, self._replay.device)
        with gatherer.hooked():
            self._run(stream, {}, gatherer)
        if only_inputs:
            self.done.discard(stream)
        self.groups = gatherer.groups()
        return gatherer.result()

    def advance(self, stream: int, changed: Mapping[str, torch.Tensor]) -> None:
        """Run the block with the tensors in ``changed`` (by names of views, shapes as stored) replaced.

        Its outputs become the stream's next inputs.
        """
        views = {view.name: view for view in self._block.parameters.values()}
        for name, tensor in changed.items():
            shape = self.stored_part(views[name]).shape if name in views else None
            if tensor.shape != shape:
                raise ModelError(f"{name}: {tuple(tensor.shape)} in {self.stack} block {self.index}, which has {shape}")
        self._run(stream, changed, None)
        self.changed = self.changed or bool(changed)

    def drop(self, stream: int) -> None:
        """Give a stream up: no block runs on its states any more, and they need not be finite."""
        self._replay.dropped_streams.add(stream)

    def matrix(self, name: str) -> torch.Tensor:
        """Return the weights (out, in) of a prunable matrix."""
        view = self.readers[name].view
        assert view is not None
        return view.to_matrix(self.stored_part(view))

    def stored_part(self, view: View) -> torch.Tensor:
        """Return a view's tensor or slice, as stored."""
        return view.cut(self.tensors[view.tensor])

    def weights(self, changed: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Return the block's parameters by their names inside it, in the dtype that they run in.

        Those in ``changed``, by names of views, replace the stored ones.
        """
        replaced = changed or {}
        return {
            inner: view.to_matrix(replaced.get(view.name, self.stored_part(view))).to(self._block.dtypes[inner])
            for inner, view in self._block.parameters.items()
        }

    def replace(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace parameters, by their names inside the block, in ``tensors``, rounded to the stored dtype."""
        views = {self._block.parameters[inner]: weight for inner, weight in weights.items()}
        self.tensors |= {name: self.tensors[name].clone() for name in {view.tensor for view in views}}
        for view, weight in views.items():
            view.to_matrix(self.stored_part(view)).copy_(weight)
        self.changed = True

    def forward(self, stream: int, rows: slice, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run the block with ``weights`` on the stream's states of a group of samples; return (group, length, width).

        Nothing is kept, and gradients reach the weights.
        """
        return self._replay.forward(self._block, weights, stream, rows)

    def input_states(self, stream: int, rows: slice) -> torch.Tensor:
        """Return the block's input states of these samples: (group, length, width)."""
        return self._replay.states.read(stream, rows)

    def output_states(self, stream: int, rows: slice) -> torch.Tensor:
        """Return the output states of these samples, after ``observe`` or ``advance``: (group, length, width)."""
        return self._replay.states.written(stream, rows)

    def mask(self, rows: slice, encoder: bool = False) -> torch.Tensor:
        """Return these samples' mask on this stack or the encoder: bool, (group, length), False for padding."""
        replay = self._replay.encoder if encoder else self._replay
        assert replay is not None, "cross-attention without an encoder"
        return replay.tokens.mask[rows]

    def _run(self, stream: int, changed: Mapping[str, torch.Tensor], gatherer: Gatherer | None) -> None:
        with torch.no_grad():
            self._replay.run(self._block, self.weights(changed), stream, gatherer)
        self.done.add(stream)


class Replay:
    """A checkpoint's blocks, visited in order while calibration text runs through them.

    It calculates in ``dtype`` (``auto``: the checkpoint's) on ``device``, which holds a block's tensors while it is
    visited. Memory: one block's weights (with a GPU also the next one's in main memory), activations of ``group``
    samples (default: of about TOKENS_AT_ONCE tokens) and two copies of every stream's hidden states in that dtype. When
    these would take more than IN_MEMORY bytes, they are files under ``spill``. Raises UnsupportedError or ModelError,
    with a name, before any work when the model cannot be replayed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        batch: Batch,
        streams: int = 1,
        spill: Path | None = None,
        dtype: str = "auto",
        group: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.checkpoint = checkpoint
        self.batch = batch
        self.streams = streams
        self.group = group
        self.device = device
        precise = precision.resolve(dtype, checkpoint.config, checkpoint.tensors)
        self._skeleton = build_skeleton(precision.with_dtype(checkpoint.config, precise), family)
        model = self._skeleton.model
        _check_batch(batch, self._skeleton)
        fill_skeleton(self._skeleton, checkpoint, family)
        # Where neurons are grouped into experts, only those chosen for a token count, as in the model itself.
        moefied.install_routers(model, checkpoint)
        move(model, device)
        lengths = [ids.shape[1] for ids in (batch.input_ids, batch.decoder_input_ids) if ids is not None]
        self._longest = max(lengths)
        width = max(stack.module.config.hidden_size for stack in self._skeleton.stacks)
        states = 2 * streams * len(batch.input_ids) * sum(lengths) * width * model.dtype.itemsize
        self._spill = spill if states > IN_MEMORY else None
        self._last: StackReplay | None = None

    def run(self, visit: Callable[[Block], None], progress: Callable[[int, int], None] | None = None) -> None:
        """Visit every block in order; ``progress`` gets the number of blocks done and their total."""
        for done, block in enumerate(self.walk()):
            if progress is not None and done:
                progress(done, len(self))
            visit(block)
        if progress is not None:
            progress(len(self), len(self))

    def __len__(self) -> int:
        return len(self._skeleton.blocks)

    def walk(self) -> Iterator[Block]:
        """Yield every block in order, the encoder's first.

        A stream that the caller neither observed nor advanced runs through the stored block, unless it was dropped.
        Once all are dropped, no more blocks come.
        """
        diverged = False
        running: StackReplay | None = None
        tensors_of_blocks = self._read_ahead(self._skeleton.blocks)
        for stack in self._skeleton.stacks:
            with torch.no_grad():
                if running is not None:
                    running.finish()
                running = self._begin(stack, running)
            for skeleton_block in stack.blocks:
                same_inputs = self.streams == 1 or not diverged
                block = Block(running, skeleton_block, next(tensors_of_blocks), same_inputs)
                yield block
                for stream in running.live_streams:
                    if stream not in block.done:
                        block.advance(stream, {})
                running.states.swap()
                block.tensors = {}
                diverged = diverged or block.changed
                if not running.live_streams:
                    return
        self._last = running

    def outputs(self, stream: int) -> torch.Tensor:
        """Return, after ``run``, the last stack's final hidden states (samples, length, width), final norm included.

        Raises ModelError before all blocks have run.
        """
        if self._last is None:
            raise ModelError(f"{self.checkpoint.folder}: there are no outputs before all blocks have run")
        with torch.no_grad():
            return torch.cat([self._last.result(stream, rows) for rows in self._last.groups])

    def _read_ahead(self, blocks: Sequence[SkeletonBlock]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield each block's tensors on the device; for a GPU, a thread reads the next block's while one is visited."""
        if self.device == "cpu" or not blocks:
            yield from map(self._read, blocks)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read, blocks[0])
            for block in (*blocks[1:], None):
                tensors = ahead.result()
                if block is not None:
                    ahead = reader.submit(self._read, block)
                # Copies from pinned memory do not block this thread; GPU work that uses them waits for them.
                tensors = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
                yield tensors
                tensors = {}

    def _read(self, block: SkeletonBlock) -> dict[str, torch.Tensor]:
        """Read a block's tensors into main memory, pinned for a GPU.

        Raises ModelError where a weight is NaN or infinite: otherwise all later states would be, and another tensor
        blamed.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name in dict.fromkeys((*block.tensors, *(view.tensor for view in block.parameters.values()))):
            tensor = self.checkpoint.load(name)
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ModelError(f"{name}: NaN or infinite values", "repair or fetch the checkpoint again")
            tensors[name] = tensor.pin_memory() if devices.is_gpu(self.device) else tensor
        return tensors

    def _begin(self, stack: Stack, encoder: StackReplay | None) -> StackReplay:
        """Return the replay of a stack, with its tokens embedded."""
        batch = self.batch
        ids, mask = batch.input_ids, batch.attention_mask
        if encoder is not None:
            assert batch.decoder_input_ids is not None
            ids, mask = batch.decoder_input_ids, batch.mask("decoder")
        tokens = StackTokens(ids.to(self.device), mask.to(self.device).bool())
        samples = len(ids)
        size = self.group or max(1, TOKENS_AT_ONCE // self._longest)
        groups = [slice(start, min(start + size, samples)) for start in range(0, samples, size)]
        states = States(self.streams, samples, self._spill, self.device)
        replay = StackReplay(stack, tokens, states, groups, encoder)
        replay.begin()
        return replay


def _check_batch(batch: Batch, skeleton: Skeleton) -> None:
    """Raise ModelError for tokens that the model cannot read."""
    inputs = [("input_ids", batch.input_ids, batch.attention_mask)]
    if len(skeleton.stacks) == 2:
        if batch.decoder_input_ids is None:
            raise ModelError("calibration of an encoder-decoder needs decoder_input_ids", "name a target field")
        inputs.append(("decoder_input_ids", batch.decoder_input_ids, batch.mask("decoder")))
    for stack, (name, ids, mask) in zip(skeleton.stacks, inputs, strict=True):
        if ids.ndim != 2 or not ids.numel() or len(ids) != len(batch.input_ids):
            raise ModelError(f"{name} is {tuple(ids.shape)} where (samples, length) is needed")
        if mask.shape != ids.shape or not bool(mask.any()):
            raise ModelError(f"{name}: its mask is {tuple(mask.shape)} with {int(mask.sum())} tokens")
        vocabulary = stack.module.get_input_embeddings().weight.shape[0]
        if int(ids.max()) >= vocabulary or int(ids.min()) < 0:
            raise ModelError(f"{name} reaches {int(ids.max())} in a vocabulary of {vocabulary}", "check the tokenizer")
