"""A transformer's dimensions, read from its config.json under any architecture's names for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dimensions:
    """A transformer's dimensions.

    ``layers`` counts the blocks of the first side, ``decoder_layers`` those of an encoder-decoder's second (else 0).
    ``hidden`` is a token's width between blocks, ``inner`` in the feed-forward part. Each of the ``heads`` is
    ``head_size`` wide; ``key_heads`` is the number of key-value heads. ``experts`` is 1 where there are none.
    """

    hidden: int
    layers: int
    decoder_layers: int
    inner: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    experts: int = 1


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Return the dimensions that the config states, with usual values for those that it does not."""

    def first(*names: str, default: int = 0) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), default)

    hidden = first("hidden_size", "d_model", "n_embd", "dim", default=768)
    layers = first("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", default=12)
    names = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads", "encoder_attention_heads")
    heads = first(*names, default=12)
    both = bool(config.get("is_encoder_decoder"))
    return Dimensions(
        hidden=hidden,
        layers=layers,
        decoder_layers=first("num_decoder_layers", "decoder_layers", default=layers) if both else 0,
        inner=first("moe_intermediate_size", default=0)
        or first(
            *("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "n_inner", "ffn_hidden_size", "hidden_dim"),
            default=4 * hidden,
        ),
        heads=heads,
        key_heads=first("num_key_value_heads", default=heads),
        head_size=first("head_dim", "d_kv", default=hidden // max(1, heads)),
        vocabulary=first("vocab_size", default=32000),
        experts=max(1, first("num_local_experts", "num_experts", "n_routed_experts", default=1)),
    )
