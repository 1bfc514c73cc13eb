"""What each tensor of a transformer is, read from its name: layer, stack, kind, and which linear weights it holds.

Names follow Hugging Face conventions. The linear weights inside transformer blocks are prunable, those of experts too.
Embeddings, output heads, routers, norms, biases and position tables are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import CONV1D_TYPES, FLOAT_DTYPES, Checkpoint, TensorInfo

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TRANSPOSED_EXPERTS = frozenset({"aria", "aria_text", "gpt_oss", "llama4", "llama4_text", "openai_privacy_filter"})
"""Model types whose fused experts are stored (experts, in, out) instead of (experts, out, in)."""
LINEAR_TYPES = frozenset({"Linear", "Conv1D", "FalconLinear"})
"""Modules that only multiply with their weight and add a bias; other subclasses may use the weight in another way."""
EXPERT_LAYERS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""The names of an expert's linear layers as Mixtral and its kin store them, and as they are called here."""

_GLOBAL = "the layers of its global attention read nothing where no token has it"
_STATE_SPACE = "its state-space layers multiply with weights without calling the layers that hold them"
STATE_SPACE = dict.fromkeys(("falcon_mamba", "jamba", "mamba"), _STATE_SPACE)
NO_TEXT = {"whisper": "it reads audio, not text"}
"""Model types that cannot be given text, and why."""
NOT_REPLAYED = {
    "albert": "its layers share one set of weights",
    "led": _GLOBAL,
    "longformer": _GLOBAL,
    **STATE_SPACE,
    **NO_TEXT,
}
"""Model types that cannot be replayed block by block, and why."""
CHOOSE_MAGNITUDE = "choose magnitude or random"
"""The way out for a model that cannot be replayed: these two methods need no calibration text."""

_FUSED = re.compile(r"experts\.(gate_up_proj|up_proj|down_proj)$|(^|\.)(input|output)_linear\.weight$")
_APART = re.compile(r"experts\.\d+\.(gate_proj|w1)\.weight$")
_EXPERTS = re.compile(r"(^|\.)experts\.")
_ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)\.")
_BUFFER = re.compile(r"(masked_bias|inv_freq|position_ids)$")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|albert_layer_groups)\.(\d+)\.")
_CROSS = re.compile(r"EncDecAttention|encoder_attn|crossattention|cross_attn")
_TABLE = re.compile(r"relative_attention_bias|embed|rotary|(^|\.)(wte|wpe|shared)\.", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|\.)ln[_.]", re.IGNORECASE)
_HEAD = re.compile(r"head|classifier|pooler|(^|\.)(cls|score|proj_out|embed_out|qa_outputs)\.|^decoder\.weight$")

_MODULES = {
    "qkv": "query_key_value c_attn qkv_proj Wqkv in_proj",
    "q": "q_proj query_proj query q q_lin q_a_proj q_b_proj",
    "k": "k_proj key_proj key k k_lin",
    "v": "v_proj value_proj value v v_lin",
    "kv": "kv_a_proj_with_mqa kv_b_proj",
    "o": "o_proj out_proj out_lin o attn.c_proj attn.Wo attention.output.dense attention.dense self_attention.dense "
    "self_attn.dense",
    "gate": "gate_proj wi_0 w1 fc12",
    "gate_up": "gate_up_proj mlp.Wi input_linear",
    "up": "up_proj wi_1 wi fc1 fc_in c_fc dense_h_to_4h intermediate.dense lin1 ffn w3 fc11",
    "down": "down_proj wo fc2 fc_out w2 output_linear mlp.c_proj mlp.Wo dense_4h_to_h output.dense lin2 ffn_output",
}
_KINDS = {name: kind for kind, names in _MODULES.items() for name in names.split()}
"""A linear layer's kind by the end of its module's name; the longest matching end counts."""
_ROLES = dict.fromkeys(("qkv", "kv", "q", "k", "v", "o"), "attention") | dict.fromkeys(
    ("gate", "gate_up", "up", "down"), "mlp"
)
_ROLES["head"] = "head"


BlockId = tuple[str, int]
"""A block: its stack, and its number there."""


@dataclass(frozen=True)
class View:
    """A stored tensor or a part of it: the slice of one ``expert`` of a fused one, or only its ``rows`` (start, end).

    ``transposed`` says that it is stored (in, out).
    """

    tensor: str
    expert: int | None = None
    transposed: bool = False
    rows: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The tensor's name, with the expert's number in brackets; views of some ``rows`` have their tensor's."""
        return self.tensor if self.expert is None else f"{self.tensor}[{self.expert}]"

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the expert's slice of the whole ``tensor``, as stored."""
        return tensor if self.expert is None else tensor[self.expert]

    def to_matrix(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the view's part of what ``cut`` gives, a matrix as (out, in)."""
        stored = stored if self.rows is None else stored[slice(*self.rows)]
        return stored.T if self.transposed else stored

    def to_stored(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return a matrix (out, in) as stored: the reverse of ``to_matrix`` for a view without ``rows``."""
        return matrix.T.contiguous() if self.transposed else matrix


@dataclass(frozen=True)
class Part:
    """One tensor's position in the model: its ``block`` (None outside the blocks), stack and kind.

    ``stack`` is ``encoder``, ``decoder`` or ``""`` (shared). ``kind`` is one of q, k, v, o (with the prefix ``cross_``
    in cross-attention), kv, qkv, gate, up, gate_up, down, router, norm, bias, embedding, head, other. ``transposed``
    says that the matrix is stored (in, out), as in GPT-2. ``experts`` is the number of matrices in a fused tensor,
    along its first dimension.
    """

    name: str
    block: int | None
    stack: str
    kind: str
    prunable: bool
    transposed: bool = False
    experts: int = 0

    @property
    def views(self) -> tuple[View, ...]:
        """The prunable matrices in this tensor: none, one, or one for each expert."""
        if not self.prunable:
            return ()
        numbers = range(self.experts) if self.experts else (None,)
        return tuple(View(self.name, number, self.transposed) for number in numbers)


def part(info: TensorInfo, config: Mapping[str, Any], family: str) -> Part:
    """Return the part that the tensor ``info`` is in a model of ``family`` with this config.json."""
    name = info.name
    # T5 nests `block.3.layer.1`: the outer number is the depth.
    number = _LAYER.search(name)
    layer = int(number[1]) if number else None
    kind = _kind(info, layer)
    if kind in ("q", "k", "v", "o") and _CROSS.search(name):
        kind = f"cross_{kind}"
    fused = len(info.shape) == 3 and _FUSED.search(name) is not None
    prunable = (
        layer is not None
        and (fused or (len(info.shape) == 2 and name.endswith("weight")))
        and min(info.shape) > 1
        and info.dtype in FLOAT_DTYPES
        and kind not in ("norm", "embedding", "router")
    )
    transposed = prunable and str(config.get("model_type")) in (TRANSPOSED_EXPERTS if fused else CONV1D_TYPES)
    matrices = info.shape[0] if prunable and fused else 0
    return Part(name, layer, _stack_of(name, family), kind, prunable, transposed, matrices)


def with_block_number(name: str, layer: int) -> str:
    """Return the name of a block's tensor with the block's number replaced by ``layer``.

    Raises ValueError for a tensor outside the blocks.
    """
    old = _LAYER.search(name)
    if old is None:
        raise ValueError(f"{name} stands in no block")
    return f"{name[: old.start(1)]}{layer}{name[old.end(1) :]}"


def stored_apart(stored: Iterable[str]) -> bool:
    """Return whether a checkpoint with these tensor names stores each expert's gate and up as tensors of their own."""
    return any(_APART.search(name) for name in stored)


def checked_parts(checkpoint: Checkpoint, family: str) -> dict[str, Part]:
    """Return the ``parts`` of a model to prune.

    Raises ModelError where nothing is prunable, UnsupportedError where experts are stored in an unknown form.
    """
    model_parts = parts(checkpoint, family)
    if not any(tensor_part.prunable for tensor_part in model_parts.values()):
        problem = f"{checkpoint.folder}: no prunable weights found"
        raise ModelError(problem, "is the family right? see `sparsebench inspect`")
    for name, info in checkpoint.tensors.items():
        is_other = model_parts[name].kind in ("bias", "norm", "router")
        weight = len(info.shape) > 1 and info.dtype in FLOAT_DTYPES and not is_other
        if weight and _EXPERTS.search(name) and not model_parts[name].prunable:
            kind = checkpoint.config.get("model_type")
            problem = f"{name}: how {kind} stores its experts is not known, and they would stay as they are"
            raise UnsupportedError(problem, "leave the model out")
    return model_parts


def prunable_share(checkpoint: Checkpoint, family: str) -> float:
    """Return the prunable share of all parameters, counting tied ones once."""
    model_parts = parts(checkpoint, family)
    sizes = {name: info.numel for name, info in weight_tensors(checkpoint, model_parts).items()}
    return sum(size for name, size in sizes.items() if model_parts[name].prunable) / max(1, sum(sizes.values()))


def weight_tensors(checkpoint: Checkpoint, model_parts: Mapping[str, Part]) -> dict[str, TensorInfo]:
    """Return the tensors that hold parameters, in file order: of a floating-point dtype, tied ones once, no buffers.

    Old checkpoints have buffers: causal masks (4-dimensional "biases") and frequencies.
    """
    ties = checkpoint.ties
    return {
        name: info
        for name, info in checkpoint.tensors.items()
        if info.dtype in FLOAT_DTYPES
        and name not in ties
        and not _BUFFER.search(name)
        and not (model_parts[name].kind == "bias" and len(info.shape) > 2)
    }


def refuse_replay(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a model whose layers' inputs cannot be seen block by block."""
    if str(config.get("model_type")) in NOT_REPLAYED:
        raise UnsupportedError(replay_refusal(config["model_type"]), CHOOSE_MAGNITUDE)


def replay_refusal(model_type: str) -> str:
    """Return why a type of NOT_REPLAYED cannot be replayed."""
    return f"{model_type} cannot be calibrated block by block: {NOT_REPLAYED[model_type]}"


def refuse_text(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a model that cannot be given text: it can be neither scored nor timed."""
    kind = str(config.get("model_type"))
    if kind in NO_TEXT:
        problem = f"{kind} can be neither scored nor timed: {NO_TEXT[kind]}"
        raise UnsupportedError(problem, "its structure and storage can be measured")


def module_part(name: str, config: Mapping[str, Any], family: str) -> Part:
    """Return the part that a linear module's weight is, by the module's name."""
    return part(TensorInfo(f"{name}.weight", "F32", (2, 2)), config, family)


def role(module: str) -> str:
    """Return the role of a linear module by its name: ``attention``, ``mlp``, ``head`` or ``other``."""
    kind = module_part(module, {}, "").kind
    return _ROLES.get(kind.removeprefix("cross_"), "other")


def spellings(model: PreTrainedModel, name: str) -> tuple[str, str, str]:
    """Return the names by which a model and a checkpoint may call one tensor or module.

    A checkpoint of the bare model lacks the prefix, such as ``model.``, that the model with a head has.
    """
    prefix = f"{model.base_model_prefix}."
    return name, prefix + name, name.removeprefix(prefix)


def module_path(model: PreTrainedModel, path: str) -> str | None:
    """Return the name in ``model`` of the module at ``path``, in any of its spellings, or None."""
    names = {name for name, _ in model.named_modules()}
    return next((spelling for spelling in spellings(model, path) if spelling in names), None)


def parts(checkpoint: Checkpoint, family: str) -> dict[str, Part]:
    """Return every tensor's part, by name. A name that repeats a tied tensor is never prunable."""
    model_parts = {name: part(info, checkpoint.config, family) for name, info in checkpoint.tensors.items()}
    for name in checkpoint.ties:
        model_parts[name] = replace(model_parts[name], prunable=False, transposed=False, experts=0)
    return model_parts


def _stack_of(name: str, family: str) -> str:
    if family != "encoder-decoder":
        return family
    for stack in ("encoder", "decoder"):
        if re.search(rf"(^|\.){stack}\.", name):
            return stack
    return ""


def _kind(info: TensorInfo, layer: int | None) -> str:
    name = info.name
    if name.endswith("bias"):
        return "bias"
    if layer is not None and _ROUTER.search(name):
        return "router"
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
