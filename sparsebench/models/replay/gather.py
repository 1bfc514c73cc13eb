"""Statistics of the inputs of a block's linear layers, gathered by hooks while the block runs.

Only calibration tokens count: rows of padding are left out. So are inputs that do not have one row per token, such
as the relative positions that DeBERTa sends through its query and key projections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.linalg.blas import ssyrk

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.modules.experts import Experts
from sparsebench.models.modules.hooks import removing_hooks
from sparsebench.models.shape.topology import CHOOSE_MAGNITUDE, View

_PANEL = 512
"""Rows of a Gram matrix that are mirrored at a time."""


@dataclass(frozen=True)
class PrunableLayer:
    """A prunable linear layer with ``width`` input values per token; ``cross`` when it reads the encoder's states.

    ``view`` says where its weights are stored. A layer of ``experts`` reads only the tokens that are routed to its
    expert; layers with equal ``input_key`` have the same input.
    """

    name: str
    module: torch.nn.Module
    width: int
    cross: bool
    view: View | None = None
    experts: Experts | None = None
    input_key: str = ""


@dataclass
class InputStatistics:
    """Sums over ``tokens`` tokens, without padding.

    ``squares`` (in,) float32 is Σ x_j²; ``gram`` (in, in) float32, symmetric, is Σ x xᵀ, and ``sums`` (in,) float64 is
    Σ x. The last two are None where no method needs them.
    """

    tokens: int
    squares: torch.Tensor
    gram: torch.Tensor | None = None
    sums: torch.Tensor | None = None


@dataclass
class _SharedInput:
    """One distinct input: the layers that read it (at the first one it is summed) and its statistics."""

    readers: list[str]
    inputs: InputStatistics
    same_for_all_samples: bool = False


@dataclass
class _MicroBatch:
    """The running micro-batch: masks (samples, length), and the storages of arguments that are not hidden states.

    ``first_readers`` are those of each input, ``other_inputs`` is what layers read that is not of this micro-batch's tokens.
    """

    mask: torch.Tensor
    encoder_mask: torch.Tensor | None
    other_storages: set[int]
    first_readers: dict[tuple[Any, ...], str] = field(default_factory=dict)
    other_inputs: list[tuple[PrunableLayer, torch.Tensor]] = field(default_factory=list)
    kept_alive: list[torch.Tensor] = field(default_factory=list)


class InputsSeen(Exception):
    """Ends a block's run when its last layer is about to compute an output that nobody needs."""


class Gatherer:
    """Input statistics of the layers of one block, summed over the micro-batches of one stream.

    Layers that read the same tensor share one sum; the first micro-batch shows which do. For experts ``input_key`` says it
    beforehand, since perhaps no token reaches one. With ``only_inputs`` the later micro-batches end, by InputsSeen,
    once the last layer's input was seen: in a Llama that saves the product with `down`, a quarter of the block. Blocks
    with experts do not end early, since the number of calls varies. Raises ModelError when a layer reads NaN or
    infinity or nothing at all, UnsupportedError when it reads two different inputs.
    """

    def __init__(
        self,
        readers: Mapping[str, PrunableLayer],
        gram: bool,
        only_inputs: bool = False,
        sums: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.readers = readers
        self.device = device
        self._with_gram = gram
        self._with_sums = sums
        self._calls = self._calls_per_micro_batch = 0
        self._shared_by_leader: dict[str, _SharedInput] = {}
        self._first_micro_batch = True
        self._micro_batch: _MicroBatch | None = None
        leaders: dict[str, str] = {}
        for reader in readers.values():
            if reader.experts is None:
                continue
            if reader.input_key in leaders:
                self._shared_by_leader[leaders[reader.input_key]].readers.append(reader.name)
            else:
                leaders[reader.input_key] = reader.name
                self._open_input(reader)
        self._ends_early = only_inputs and not leaders

    def hooked(self) -> ExitStack:
        """Return a context in which the readers' inputs are seen by hooks."""
        return removing_hooks(
            reader.module.register_forward_pre_hook(self._hook(reader), with_kwargs=True)
            for reader in self.readers.values()
            if reader.experts is None or reader.name in self._shared_by_leader
        )

    @contextmanager
    def micro_batch(
        self, mask: torch.Tensor, encoder_mask: torch.Tensor | None, other_storages: set[int]
    ) -> Iterator[None]:
        """Run one micro-batch in this context.

        ``mask`` and ``encoder_mask`` are masks (samples, length), True for tokens. ``other_storages`` are the storages of the
        block's arguments that are neither hidden nor encoder states.
        """
        self._micro_batch = _MicroBatch(mask, encoder_mask, other_storages)
        self._calls = 0
        yield
        if self._first_micro_batch:
            self._add_other_inputs(self._micro_batch)
            self._calls_per_micro_batch = self._calls
        self._first_micro_batch = False
        self._micro_batch = None

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Return the layers' names, grouped by the input that they read, in the order of their runs; experts first."""
        return tuple(tuple(shared.readers) for shared in self._shared_by_leader.values())

    def result(self) -> dict[str, InputStatistics]:
        """Return every reader's statistics; readers of the same input get the same object."""
        statistics: dict[str, InputStatistics] = {}
        for shared in self._shared_by_leader.values():
            if shared.inputs.gram is not None:
                _mirror(shared.inputs.gram)
            statistics |= dict.fromkeys(shared.readers, shared.inputs)
        if uncalled := [name for name in self.readers if name not in statistics]:
            problem = f"{uncalled[0]}: its layer is never called when its block runs"
            raise ModelError(problem, f"config.json switches it off: leave the model out, or {CHOOSE_MAGNITUDE}")
        return statistics

    def _hook(self, reader: PrunableLayer) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            micro_batch = self._micro_batch
            assert micro_batch is not None, "a reader runs outside a micro-batch"
            if reader.experts is not None:
                self._add_routed(micro_batch, reader, reader.experts.tokens, args[0])
            elif self._first_micro_batch or reader.name in self._shared_by_leader:
                self._add_input(micro_batch, reader, args[0] if args else kwargs["input"])
            self._calls += 1
            if self._ends_early and not self._first_micro_batch and self._calls == self._calls_per_micro_batch:
                raise InputsSeen

        return hook

    def _add_input(self, micro_batch: _MicroBatch, reader: PrunableLayer, values: torch.Tensor) -> None:
        mask = micro_batch.encoder_mask if reader.cross else micro_batch.mask
        assert mask is not None, "cross-attention without an encoder"
        # One row per token, flattened or not.
        per_token = values.shape[0] == mask.numel() if values.ndim == 2 else values.shape[:-1] == mask.shape
        if not per_token or values.untyped_storage().data_ptr() in micro_batch.other_storages:
            if self._first_micro_batch:
                micro_batch.other_inputs.append((reader, values))
            return
        if self._first_micro_batch:
            if self._join_input(micro_batch, reader, values):
                return
        elif self._shared_by_leader[reader.name].same_for_all_samples:
            return
        rows = values.reshape(-1, values.shape[-1])
        if not bool(mask.all()):
            rows = rows[mask.reshape(-1)]
        self._add(reader.name, rows)

    def _add_routed(
        self, micro_batch: _MicroBatch, reader: PrunableLayer, tokens: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Add ``values``, the rows of the micro-batch's ``tokens`` that are routed to this expert, without padding."""
        is_token = micro_batch.mask.reshape(-1)[tokens]
        self._add(reader.name, values if bool(is_token.all()) else values[is_token])

    def _join_input(self, micro_batch: _MicroBatch, reader: PrunableLayer, values: torch.Tensor) -> bool:
        """Join the input of an earlier layer that reads the same memory unchanged, or open one; True if joined."""
        if any(reader.name in shared.readers for shared in self._shared_by_leader.values()):
            raise UnsupportedError(
                f"{reader.name}: its layer is called twice with different inputs in one run of its block, "
                "so its input statistics are ambiguous"
            )
        if values.shape[-1] != reader.width:
            raise ModelError(f"{reader.name}: its layer reads {values.shape[-1]} values where it has {reader.width}")
        # In-place changes raise the version: then the same memory has another content.
        key = (values.data_ptr(), values.shape, values.stride(), values._version, reader.cross)
        leader = micro_batch.first_readers.get(key)
        if leader is not None:
            self._shared_by_leader[leader].readers.append(reader.name)
            return True
        micro_batch.first_readers[key] = reader.name
        micro_batch.kept_alive.append(values)  # once freed, its memory could be reused for another tensor
        self._open_input(reader)
        return False

    def _open_input(self, reader: PrunableLayer) -> None:
        gram = torch.zeros(reader.width, reader.width, device=self.device) if self._with_gram else None
        sums = torch.zeros(reader.width, dtype=torch.float64, device=self.device) if self._with_sums else None
        squares = torch.zeros(reader.width, device=self.device)
        self._shared_by_leader[reader.name] = _SharedInput([reader.name], InputStatistics(0, squares, gram, sums))

    def _add_other_inputs(self, micro_batch: _MicroBatch) -> None:
        """Measure layers that never read tokens on their other input, once: it is the same for all samples."""
        reading = {name for shared in self._shared_by_leader.values() for name in shared.readers}
        for reader, values in micro_batch.other_inputs:
            if reader.name in reading or self._join_input(micro_batch, reader, values):
                continue
            self._shared_by_leader[reader.name].same_for_all_samples = True
            self._add(reader.name, values.reshape(-1, values.shape[-1]))

    def _add(self, name: str, rows: torch.Tensor) -> None:
        inputs = self._shared_by_leader[name].inputs
        rows = rows.float()
        inputs.tokens += rows.shape[0]
        inputs.squares += rows.square().sum(0)
        if inputs.sums is not None:
            inputs.sums += rows.sum(0, dtype=inputs.sums.dtype)
        if not bool(inputs.squares.isfinite().all()):
            raise ModelError(f"{name}: what its layer reads is NaN or infinite", "use bfloat16 or float32")
        if inputs.gram is not None:
            add_gram(inputs.gram, rows)


def add_gram(gram: torch.Tensor, rows: torch.Tensor) -> None:
    """Add Σ x xᵀ of ``rows`` (tokens, width) float32 to the upper triangle of ``gram`` (width, width) float32.

    BLAS's symmetric update does half the work of a product; it was measured to be 2 to 3 times as fast as torch's
    product. BLAS is column-major: it sees both matrices transposed, without a copy, and their upper triangle as its
    lower. On a GPU torch's product adds to both triangles.
    """
    if gram.device.type != "cpu":
        gram.addmm_(rows.T, rows)
        return
    transposed = gram.numpy().T
    written = ssyrk(1.0, rows.contiguous().numpy().T, 1.0, transposed, lower=1, overwrite_c=1)
    assert written.ctypes.data == transposed.ctypes.data, "the sum went to a copy"


def _mirror(gram: torch.Tensor) -> None:
    """Copy the upper triangle to the lower one, without a second matrix."""
    for start in range(0, gram.shape[0], _PANEL):
        end = start + _PANEL
        corner = gram[start:end, start:end]
        corner.copy_(corner.triu() + corner.triu(1).T)
        gram[end:, start:end] = gram[start:end, end:].T
