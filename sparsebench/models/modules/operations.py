"""Counting a model's operations per token from its shapes, by torch on a forward pass without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsebench.errors import ModelError
from sparsebench.manifest.names import Family
from sparsebench.models.files.families import MODEL_TYPES, expert_count
from sparsebench.models.files.text import longest_input
from sparsebench.models.modules.build import meta_model
from sparsebench.models.shape.topology import NO_TEXT

LENGTH = 512
"""The tokens of the counted sequence; for an encoder-decoder, of each stack."""


def operations_per_token(config: Mapping[str, Any], family: Family) -> float | None:
    """Return the floating-point operations per token of a pass over ``LENGTH`` tokens, or the most a model reads.

    A multiplication and an addition count as two (torch's FlopCounterMode). The arithmetic of dense matrices is
    counted, with attention over all pairs of tokens and the output head at every position: zeros and integers change
    nothing, shapes do. Skipped weights are counted; the ledger's view ``variants`` subtracts them. For an
    encoder-decoder, all operations are divided by the decoder's tokens. The result is None where a pass needs the
    weights' values, as to choose experts, and for an unknown model type.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES or kind in NO_TEXT or expert_count(config) > 1:
        return None
    try:
        return _operations(config, family)
    except (ModelError, RuntimeError, ValueError, TypeError):
        return None  # transformers' code for this configuration reads values, and there are none


def _operations(config: Mapping[str, Any], family: Family) -> float:
    model = meta_model(family, {**config, "use_cache": False}).eval()
    model.set_attn_implementation("eager")
    length = min(LENGTH, longest_input(config) or LENGTH)
    ids = torch.zeros((1, length), dtype=torch.long, device="meta")
    # On the meta device there are no values to read. A decoder without a mask reads those of its positions, to make one;
    # other models with a mask read those of the mask.
    inputs = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if family == "decoder" else {})
    if family == "encoder-decoder":
        inputs |= {"decoder_input_ids": ids}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() / length
