"""What each tensor of a transformer is, read from its name: layer, side, kind, and whether it is prunable.

Names follow Hugging Face conventions. Prunable are the linear weights inside transformer blocks:
embeddings, output heads, norms, biases and position tables stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsebench.models.checkpoint import FLOATS, Checkpoint, TensorInfo

CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers store (in, out) instead of (out, in)."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|albert_layer_groups)\.(\d+)\.")
_CROSS = re.compile(r"EncDecAttention|encoder_attn|crossattention|cross_attn")
_TABLE = re.compile(r"relative_attention_bias|embed|rotary|(^|\.)(wte|wpe|shared)\.", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|\.)ln[_.]", re.IGNORECASE)
_HEAD = re.compile(r"head|classifier|pooler|(^|\.)(cls|score|proj_out|embed_out|qa_outputs)\.|^decoder\.weight$")

_MODULES = {
    "qkv": "query_key_value c_attn qkv_proj Wqkv in_proj",
    "q": "q_proj query_proj query q q_lin",
    "k": "k_proj key_proj key k k_lin",
    "v": "v_proj value_proj value v v_lin",
    "o": "o_proj out_proj out_lin o attn.c_proj attn.Wo attention.output.dense attention.dense self_attention.dense "
    "self_attn.dense",
    "gate": "gate_proj wi_0",
    "gate_up": "gate_up_proj mlp.Wi",
    "up": "up_proj wi_1 wi fc1 fc_in c_fc dense_h_to_4h intermediate.dense lin1 ffn",
    "down": "down_proj wo fc2 fc_out mlp.c_proj mlp.Wo dense_4h_to_h output.dense lin2 ffn_output",
}
_KINDS = {name: kind for kind, names in _MODULES.items() for name in names.split()}
"""A linear layer's kind by the end of its module's name; the longest end that is listed counts."""
_ROLES = dict.fromkeys(("qkv", "q", "k", "v", "o"), "attention") | dict.fromkeys(
    ("gate", "gate_up", "up", "down"), "mlp"
)
_ROLES["head"] = "head"


@dataclass(frozen=True)
class Part:
    """One tensor's place in the model.

    ``side`` is ``encoder``, ``decoder`` or ``""`` (shared); ``kind`` is one of q, k, v, o, qkv (with the prefix
    ``cross_`` in cross-attention), gate, up, gate_up, down, norm, bias, embedding, head, other;
    ``rows_last`` says that the matrix is stored (in, out), as GPT-2 does.
    """

    name: str
    layer: int | None
    side: str
    kind: str
    prunable: bool
    rows_last: bool = False


def part(info: TensorInfo, config: Mapping[str, Any], family: str) -> Part:
    """Where ``info`` belongs in a model of ``family`` with this config.json."""
    name = info.name
    # T5 nests `block.3.layer.1`: the outer number is the depth.
    found = _LAYER.search(name)
    layer = int(found.group(1)) if found else None
    kind = _kind(info, layer)
    if kind in ("q", "k", "v", "o") and _CROSS.search(name):
        kind = f"cross_{kind}"
    prunable = (
        layer is not None
        and len(info.shape) == 2
        and min(info.shape) > 1
        and info.dtype in FLOATS
        and name.endswith("weight")
        and kind not in ("norm", "embedding")
    )
    rows_last = prunable and config.get("model_type") in CONV1D_TYPES
    return Part(name, layer, _side(name, family), kind, prunable, rows_last)


def role(module: str) -> str:
    """What a linear module of this name is for: ``attention``, ``mlp``, ``head`` or ``other``."""
    kind = part(TensorInfo(f"{module}.weight", "F32", (2, 2), "", 0, 0), {}, "").kind
    return _ROLES.get(kind.removeprefix("cross_"), "other")


def parts(checkpoint: Checkpoint, family: str) -> dict[str, Part]:
    """Every tensor's part, by name. A name that repeats a tied tensor is never prunable."""
    found = {name: part(info, checkpoint.config, family) for name, info in checkpoint.tensors.items()}
    for name in checkpoint.ties:
        found[name] = Part(name, found[name].layer, found[name].side, found[name].kind, prunable=False)
    return found


def _side(name: str, family: str) -> str:
    if family != "encoder-decoder":
        return family
    for side in ("encoder", "decoder"):
        if re.search(rf"(^|\.){side}\.", name):
            return side
    return ""


def _kind(info: TensorInfo, layer: int | None) -> str:
    name = info.name
    if name.endswith("bias"):
        return "bias"
    # BERT's embeddings.LayerNorm is a norm, not a table.
    if _NORM.search(name):
        return "norm"
    if layer is None and _HEAD.search(name):
        return "head"
    if _TABLE.search(name):
        return "embedding"
    module = name.removesuffix(".weight").split(".")
    ends = (".".join(module[-length:]) for length in (3, 2, 1)) if layer is not None else ()
    return next((_KINDS[end] for end in ends if end in _KINDS), "other")
