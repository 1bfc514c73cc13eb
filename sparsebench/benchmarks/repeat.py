"""Whether a batch comes out the same twice: a sign that a cell would, and no proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsebench.models.text import longest_input

if TYPE_CHECKING:
    import torch

SEQUENCES, TOKENS = 8, 32
"""Of the batch that is computed twice: enough for every thread to have a share, and a second's work for a billion parameters."""


def repeats(model: Any) -> str:
    """What came of computing one batch twice: ``to the bit``, or by how much the two differ.

    Sums in another order, by threads that share the work differently or by a kernel that is chosen anew, would show.
    """
    import torch

    length = min(TOKENS, longest_input(model.config.to_dict()) or TOKENS)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(SEQUENCES * length) % vocabulary).reshape(SEQUENCES, length).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        with torch.inference_mode():
            one, other = (_first(model(**inputs)) for _ in range(2))
    except (
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:  # a model of another making; its tasks tell what is wrong with it
        return f"not tried: {type(error).__name__}"
    if torch.equal(one, other):
        return "to the bit"
    return f"no: the same batch twice differs by up to {float((one - other).abs().max()):.1e}"


def _first(output: Any) -> torch.Tensor:
    """The logits or hidden states of a model's output, NaN (a damaged model's) as zero."""
    found: torch.Tensor = next(iter(output.values()))
    return found.float().nan_to_num()
