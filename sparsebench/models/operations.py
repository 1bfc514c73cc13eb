"""How many operations a token takes in a model of these shapes, counted by torch on a forward pass without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError
from sparsebench.models.dimensions import dimensions
from sparsebench.models.families import MODEL_TYPES, meta_model
from sparsebench.models.text import longest_input
from sparsebench.models.topology import NO_TEXT

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family

LENGTH = 512
"""Tokens of the sequence that is counted; of an encoder-decoder on either side."""


def operations_a_token(config: Mapping[str, Any], family: Family) -> float | None:
    """Floating-point operations of one forward pass over ``LENGTH`` tokens, or as many as there are positions, over their number.

    A multiplication and an addition are two (torch's FlopCounterMode). Counted is the arithmetic of dense matrices, attention
    over all pairs of tokens and the output head at every position among them: zeros and integers change nothing, shapes do.
    Skipped weights count here; the ledger's view ``variants`` takes them off. Of an encoder-decoder, all is divided by the
    decoder's tokens. None where a pass needs the weights' values, as to choose experts, and for a type that is not known here.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES or kind in NO_TEXT or dimensions(config).experts > 1:
        return None
    try:
        return _counted(config, family)
    except (ModelError, RuntimeError, ValueError, TypeError):
        return None  # transformers' code for this configuration looks at values, which there are none of


def _counted(config: Mapping[str, Any], family: Family) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = meta_model(family, {**config, "use_cache": False}).eval()
    model.set_attn_implementation("eager")
    length = tokens_counted(config)
    ids = torch.zeros((1, length), dtype=torch.long, device="meta")
    # A decoder without a mask would look at positions, any other with one at padding: there are no values.
    given = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if family == "decoder" else {})
    if family == "encoder-decoder":
        given |= {"decoder_input_ids": ids}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**given)
    return counter.get_total_flops() / length


def tokens_counted(config: Mapping[str, Any]) -> int:
    """The tokens of the sequence that is counted in a model with this config.json."""
    return min(LENGTH, longest_input(config) or LENGTH)
