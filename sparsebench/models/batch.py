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
    Encoder-decoders have the decoder's two, (samples, decoder length), as well.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor | None = None
    decoder_attention_mask: Tensor | None = None
