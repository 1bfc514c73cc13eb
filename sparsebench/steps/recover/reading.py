"""The text that a whole model is trained on: its samples, their labels, and the order in which they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import ModelError
from sparsebench.manifest.names import Family
from sparsebench.models.files.text import load_tokenizer, longest_input
from sparsebench.models.replay.batch import Batch
from sparsebench.models.replay.blockwise import TOKENS_AT_ONCE
from sparsebench.steps.calibration import Calibrated, Calibration, named_text
from sparsebench.steps.contract import Context, Step

LENGTH = 512
UNLABELLED = -100
"""The label of a position without a prediction, torch's ``ignore_index`` of the cross-entropy."""
PREDICTED_SHARE, HIDDEN_SHARE, REPLACED_SHARE = 0.15, 0.8, 0.1
"""The share of tokens that a masked language model must predict; of these, the share that is hidden by the mask token
and the share that is replaced by a random token (Devlin et al. 1810.04805)."""


@dataclass(frozen=True)
class TrainingText:
    """Samples for a model of ``family``. Samples that are read together are cut to the longest of them."""

    family: Family
    batch: Batch

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.batch.input_ids)

    def counts(self) -> list[int]:
        """Return the tokens of each sample; for an encoder-decoder those of both stacks together."""
        count = self.batch.attention_mask.sum(1)
        if self.batch.decoder_attention_mask is not None:
            count = count + self.batch.decoder_attention_mask[:, 1:].sum(1)
        return [int(tokens) for tokens in count]

    def inputs(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the model's inputs for some samples: ids and masks, (rows, length) int64."""
        mask = self.batch.attention_mask[list(rows)]
        end = int(mask.sum(1).max())
        inputs = {"input_ids": self.batch.input_ids[list(rows)][:, :end], "attention_mask": mask[:, :end].long()}
        if self.batch.decoder_input_ids is not None:
            decoder_mask = self.mask(rows)
            inputs["decoder_input_ids"] = self.batch.decoder_input_ids[list(rows)][:, : decoder_mask.shape[1]]
            inputs["decoder_attention_mask"] = decoder_mask.long()
        return inputs

    def mask(self, rows: Sequence[int]) -> torch.Tensor:
        """Return which positions of the outputs (a decoder's, if there is one) are tokens, (rows, length) bool."""
        mask = self.batch.attention_mask[list(rows)]
        if self.batch.decoder_attention_mask is not None:
            mask = self.batch.decoder_attention_mask[list(rows)][:, 1:]
        return mask[:, : int(mask.sum(1).max())]

    def next_tokens(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the token that follows each position of the outputs, (rows, length) int64; else UNLABELLED."""
        mask = self.mask(rows)
        if self.batch.decoder_input_ids is not None:
            targets = self.batch.decoder_input_ids[list(rows)][:, 1 : mask.shape[1] + 1]
            return targets.masked_fill(~mask, UNLABELLED)
        ids = self.batch.input_ids[list(rows)][:, : mask.shape[1]].masked_fill(~mask, UNLABELLED)
        return torch.cat([ids[:, 1:], ids.new_full((len(ids), 1), UNLABELLED)], 1)

    def groups(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Return the rows in groups that run at once, of about TOKENS_AT_ONCE tokens each, padding included."""
        batch = self.batch
        length = batch.input_ids.shape[1] + (0 if batch.decoder_input_ids is None else batch.decoder_input_ids.shape[1])
        size = max(1, TOKENS_AT_ONCE // length)
        return (list(rows[start : start + size]) for start in range(0, len(rows), size))


@dataclass(frozen=True)
class WordMasking:
    """How tokens are masked: ``mask_token`` is the id of the mask token; ``special`` tokens are never masked."""

    mask_token: int
    special: frozenset[int]
    vocabulary: int

    @classmethod
    def of(cls, folder: Path, vocabulary: int) -> WordMasking:
        """Return the masking for the tokenizer in ``folder``. Raises ModelError where it has no mask token."""
        tokenizer: Any = load_tokenizer(folder)
        if tokenizer.mask_token_id is None:
            raise ModelError(f"{folder}: its tokenizer has no mask token", "distill it instead: {recover: distill}")
        return cls(tokenizer.mask_token_id, frozenset(tokenizer.all_special_ids), vocabulary)

    def masked(self, ids: torch.Tensor, mask: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids (rows, length), masked at random by ``seed``, and the labels, UNLABELLED elsewhere."""
        generator = torch.Generator().manual_seed(seed)
        special = torch.isin(ids, torch.tensor(sorted(self.special), device=ids.device))
        allowed = mask.bool() & ~special
        predicted = allowed & (torch.rand(ids.shape, generator=generator, device="cpu") < PREDICTED_SHARE)
        if not predicted.any():  # a loss over no tokens would be NaN
            predicted.view(-1)[int(allowed.view(-1).int().argmax())] = True
        fate = torch.rand(ids.shape, generator=generator, device="cpu")
        random_ids = torch.randint(self.vocabulary, ids.shape, generator=generator, device="cpu")
        masked = torch.where(predicted & (fate < HIDDEN_SHARE), self.mask_token, ids)
        masked = torch.where(predicted & (fate >= 1 - REPLACED_SHARE), random_ids, masked)
        return masked, ids.masked_fill(~predicted, UNLABELLED)


def draw_samples(step: Step, context: Context, config: dict[str, Any]) -> tuple[Calibrated, int]:
    """Return the samples of the step's text, and how many of them, the last ones, are held out.

    There are enough samples for the step's tokens unless the text is too short. Raises ModelError where none is left to
    train on.
    """
    assert context.training_tokens is not None
    settings = step.settings
    source, field = named_text(settings)
    length = settings.length or min(LENGTH, longest_input(config) or LENGTH)
    share = 1 - settings.held_out
    sample_count = ceil(settings.tokens / length / share) + 1
    while True:
        text = context.training_tokens(Calibration(source, sample_count, length, context.seed, field, settings.target))
        samples = len(text.batch.input_ids)
        # Samples of encoders and encoder-decoders keep their length, so that the first estimate may give too few
        # tokens.
        if samples < sample_count or text.tokens * share >= settings.tokens:
            break
        sample_count = ceil(1.1 * sample_count * settings.tokens / share / text.tokens) + 1
    held_count = max(1, round(settings.held_out * samples))
    if held_count >= samples:
        raise ModelError(
            f"{step.verb}: {step.name}: {samples} samples of text, of which {held_count} are held out: none is left to train on",
            "name a longer `source`, or a smaller `length`",
        )
    return text, held_count


def samples_by_step(counts: Sequence[int], tokens: int, size: int, seed: int) -> list[list[int]]:
    """Return the samples of each optimizer step, ``size`` at a time, until ``tokens`` are read.

    ``counts`` are each sample's tokens. The order of an epoch is drawn from the seed and the epoch's number alone. A
    resumed training needs only its step number.
    """
    steps: list[list[int]] = []
    read = epoch = 0
    while True:
        drawn = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(len(counts), generator=drawn, device="cpu").tolist()
        for start in range(0, len(order), size):
            if read >= tokens:
                return steps
            steps.append(order[start : start + size])
            read += sum(counts[row] for row in steps[-1])
        epoch += 1
