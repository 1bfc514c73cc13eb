"""A batch of calibration tokens, from the tokenizer to the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of one length, padded on the right where the family pads.

    ``input_ids`` are (samples, length) int64, ``attention_mask`` has the same shape, bool, all True for decoders.
    Encoder-decoders have the decoder's two, (samples, decoder length), as well; a missing mask of theirs is all True.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor | None = None
    decoder_attention_mask: Tensor | None = None

    def __post_init__(self) -> None:
        ids = self.decoder_input_ids
        if ids is not None and self.decoder_attention_mask is None:
            object.__setattr__(self, "decoder_attention_mask", ids.new_ones(ids.shape).bool())

    def mask(self, stack: str) -> Tensor:
        """Return where a stack (``encoder``, ``decoder``) has tokens and no padding: (samples, its length) bool."""
        mask = self.decoder_attention_mask if stack == "decoder" else None
        return (self.attention_mask if mask is None else mask).bool()

    def inputs(self, rows: slice, device: str = "cpu") -> dict[str, Tensor]:
        """Return a model's inputs for some samples, by name: ids and masks as int64, on ``device``."""
        return {name: tensor[rows].long().to(device) for name, tensor in vars(self).items() if tensor is not None}
