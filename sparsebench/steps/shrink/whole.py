"""The whole model in memory, run on the calibration text: for losses and gradients, which need all blocks at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import has_classifier, output_family
from sparsebench.models.modules.build import stored_views
from sparsebench.models.modules.experts import split_with_weights
from sparsebench.models.modules.hooks import removing_hooks
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.batch import Batch
from sparsebench.models.replay.blockwise import TOKENS_AT_ONCE
from sparsebench.models.replay.forward_until import BlockOutput, Call, Extras, join_output, split_output
from sparsebench.models.replay.skeleton import build_skeleton
from sparsebench.models.shape.topology import BlockId, module_path
from sparsebench.steps.contract import StepProgress


@dataclass
class WholeModel:
    """A model with its blocks by stack, and the text that it runs on, in groups of about TOKENS_AT_ONCE tokens.

    ``dense_outputs`` keeps an encoder's outputs before any block was removed, by group. ``layers`` has the paths of experts'
    linear layers by the names of their matrices. ``classes`` (samples,) int64 are the targets of a classification head.
    """

    model: PreTrainedModel
    family: Family
    batch: Batch
    blocks: dict[str, list[Any]]
    dense_outputs: list[torch.Tensor] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    classes: torch.Tensor | None = None

    @classmethod
    def load(cls, folder: Path, family: Family, batch: Batch, dtype: str) -> WholeModel:
        """Load the model in ``folder``. Raises ModelError, or UnsupportedError where its blocks are not in lists."""
        checkpoint = Checkpoint(folder)
        if has_classifier(checkpoint.config) and checkpoint.config.get("is_encoder_decoder"):
            problem = f"{folder}: the loss of an encoder-decoder with a head for classes is not implemented"
            raise UnsupportedError(problem, "a criterion that reads no text, such as magnitude")
        skeleton = build_skeleton(checkpoint.config, family)
        paths = {stack.name: [block.path for block in stack.blocks] for stack in skeleton.stacks}
        model = load_model(folder, family, dtype)
        model.requires_grad_(False)
        config = model.config.get_text_config()
        # Old configurations of Llama say -1 where there is none.
        if has_classifier(checkpoint.config) and (config.pad_token_id is None or config.pad_token_id < 0):
            batch, config.pad_token_id = _with_padding_token(batch)
        names = stored_views(model, checkpoint.tensors) if split_with_weights(model, checkpoint.tensors) else {}
        layers = {view.name: name.rpartition(".")[0] for name, view in names.items() if "experts." in name}
        blocks = {stack: [model.get_submodule(path) for path in of_blocks] for stack, of_blocks in paths.items()}
        return cls(model, output_family(family, checkpoint.config), batch, blocks, layers=layers)

    def module(self, matrix: str) -> Any:
        """Return the linear layer that holds a matrix of the checkpoint, by the name of the matrix's view."""
        return self.model.get_submodule(self.layers[matrix]) if matrix in self.layers else module_of(self.model, matrix)

    def groups(self, tokens: int = TOKENS_AT_ONCE) -> list[slice]:
        """Return the samples in groups that run together, of about ``tokens`` tokens each."""
        samples, length = self.batch.input_ids.shape
        size = max(1, tokens // length)
        return [slice(start, min(start + size, samples)) for start in range(0, samples, size)]

    def mask(self, rows: slice, stack: str) -> torch.Tensor:
        """Return where a stack has tokens and no padding, (samples, length) bool."""
        return self.batch.mask(stack)[rows]

    def run(self, rows: slice) -> Any:
        """Return the outputs for a group: logits, or the last hidden states of an encoder without a classifier."""
        quiet: dict[str, Any] = {"use_cache": False} if self.family != "encoder" else {}
        outputs = self.model(**self.batch.inputs(rows), **quiet)
        return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state

    @property
    def output_stack(self) -> str:
        """The stack whose outputs are the model's."""
        return list(self.blocks)[-1]

    def next_tokens(self, rows: slice) -> torch.Tensor:
        """Return the next token at each position but the last, (samples, length - 1); -100 where it is padding."""
        ids = self.batch.input_ids if self.batch.decoder_input_ids is None else self.batch.decoder_input_ids
        targets = ids[rows][:, 1:].clone()
        return targets.masked_fill_(~self.mask(rows, self.output_stack)[:, 1:], -100)

    def losses(
        self, removed: Sequence[BlockId], trials: Sequence[BlockId], progress: StepProgress | None = None
    ) -> dict[BlockId, float]:
        """Return, for each block in ``trials``, the loss over the whole text without it and the blocks in ``removed``.

        For a model that predicts tokens it is the mean negative log-likelihood of the text's tokens. An encoder has no
        such loss; there it is the squared distance between its outputs and the whole model's, divided by the squared
        length of the latter. The blocks before the tried one in its stack run once for all of ``trials``.
        """
        groups = self.groups()
        sums = {block: torch.zeros(2, dtype=torch.float64, device="cpu") for block in trials}
        with torch.no_grad():
            if self.family == "encoder" and not self.dense_outputs:
                self.dense_outputs = [self.run(rows) for rows in groups]
            for number, rows in enumerate(groups):
                with self.without(removed), self._recorded() as recorded:
                    self.run(rows)
                for done, block in enumerate(trials, 1):
                    with self._replayed_from(block, removed, recorded):
                        sums[block] += self._loss(self.run(rows), number, rows)
                    if progress:
                        progress(number * len(trials) + done, len(groups) * len(trials))
        return {block: float(total / max(count, 1e-30)) for block, (total, count) in sums.items()}

    def _loss(self, outputs: torch.Tensor, number: int, rows: slice) -> torch.Tensor:
        """Return, for a group's ``outputs``, the loss of ``losses`` as a sum, and its divisor: (2,) float64."""
        if self.family == "encoder":
            dense = self.dense_outputs[number].float()
            mask = self.mask(rows, self.output_stack)
            mask = mask[..., None] if outputs.ndim == 3 else torch.ones_like(outputs, dtype=torch.bool)
            distance = ((outputs.float() - dense) * mask).square().sum(dtype=torch.float64)
            return torch.stack([distance, (dense * mask).square().sum(dtype=torch.float64)]).cpu()
        targets = self.next_tokens(rows).flatten()
        total = 0.0
        for logits, tokens in zip(outputs[:, :-1].flatten(0, 1).split(256), targets.split(256), strict=True):
            total += float(cross_entropy(logits.float(), tokens, ignore_index=-100, reduction="sum"))
        return torch.tensor([total, float((targets != -100).sum())], dtype=torch.float64, device="cpu")

    @contextmanager
    def _recorded(self) -> Iterator[dict[BlockId, BlockOutput]]:
        """Record, by block, its input states and what it returns besides its output states, in the runs within."""
        recorded: dict[BlockId, BlockOutput] = {}

        def recorder(block: BlockId) -> Any:
            def hook(module: Any, args: Any, kwargs: Any, returned: Any) -> None:
                recorded[block] = Call(args, kwargs).hidden, split_output(returned)[1]

            return hook

        with removing_hooks(
            block.register_forward_hook(recorder((stack, index)), with_kwargs=True)
            for stack, blocks in self.blocks.items()
            for index, block in enumerate(blocks)
        ):
            yield recorded

    @contextmanager
    def _replayed_from(
        self, start: BlockId, removed: Sequence[BlockId], recorded: Mapping[BlockId, BlockOutput]
    ) -> Iterator[None]:
        """While this lasts, the block ``start`` returns its input in the run that was ``recorded``. Neither the blocks
        before it in its stack nor those in ``removed`` compute anything."""
        stack, index = start
        replaced = {*removed, *((stack, before) for before in range(index + 1))}
        for block in replaced:
            inputs, extras = recorded[block]
            self.block(block).forward = _stand_in(inputs if block == start else None, extras)
        try:
            yield
        finally:
            for block in replaced:
                del self.block(block).forward

    def without(self, skipped: Sequence[BlockId]) -> ExitStack:
        """While this lasts, drop the output states of these blocks: the next block reads the same states as they do.

        They run all the same, since T5's first block also makes the position biases of the whole stack.
        """
        return removing_hooks(self.block(block).register_forward_hook(_pass_on, with_kwargs=True) for block in skipped)

    def block(self, block: BlockId) -> Any:
        """Return the module of a block."""
        stack, index = block
        return self.blocks[stack][index]


def module_of(model: Any, tensor: str) -> Any:
    """Return the module whose weight a checkpoint's tensor is, named with or without the model's prefix.

    Raises ModelError, naming the tensor, where there is none.
    """
    name = module_path(model, tensor.removesuffix(".weight"))
    if name is None:
        problem = f"{tensor}: the model has no layer of this name"
        raise ModelError(problem, "save the checkpoint with transformers again")
    return model.get_submodule(name)


def _with_padding_token(batch: Batch) -> tuple[Batch, int]:
    """Return the batch padded with a token that ends none of its texts, and the token.

    A decoder's head for classes reads the last token that is no padding, and looks for it by the token alone.
    """
    mask = batch.attention_mask.bool()
    ends = set(batch.input_ids.gather(1, mask.sum(1, keepdim=True) - 1).flatten().tolist())
    token = next(number for number in range(len(ends) + 1) if number not in ends)
    return replace(batch, input_ids=batch.input_ids.masked_fill(~mask, token)), token


def _pass_on(module: Any, args: Any, kwargs: Any, returned: Any) -> Any:
    return join_output(Call(args, kwargs).hidden, split_output(returned)[1])


def _stand_in(states: torch.Tensor | None, extras: Extras) -> Any:
    """Return a block's forward that returns ``states`` (None: its input) and the ``extras`` that it had returned."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return join_output(Call(args, kwargs).hidden if states is None else states, extras)

    return forward
