"""Calibration tokens on their way from the tokenizer to the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of one length, padded on the right where the family pads.

    ``input_ids`` (samples, length) int64 and ``attention_mask`` of the same shape, bool, all True for decoders; for
    encoder-decoders the decoder's two, (samples, decoder length), as well.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor | None = None
    decoder_attention_mask: Tensor | None = None
