"""Single tokens pass all blocks of a decoder of Llama's kind in one call of the library.

Between products transformers makes dozens of small torch calls a block; for one token of a small model they take longer than
the weights. ``native/sparse/decoder.h`` does the same steps. Other inputs take transformers' own code.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from sparsebench.models.files.families import cache_name
from sparsebench.runtime.kernels.cache import Store, store_of
from sparsebench.runtime.kernels.linear import DTYPE_CODES, KernelLinear
from sparsebench.runtime.kernels.matrix import Kernels

DECODER_KINDS = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
"""The prefixes of transformers' classes for decoders of this kind."""
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
STEP_ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "use_cache")
"""The arguments, besides the cache, that a step may have."""

_P, _L, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class NormFields(ctypes.Structure):
    """The library's struct ``Norm``."""

    _fields_ = (("weight", _P), ("epsilon", _D))


class LayerFields(ctypes.Structure):
    """The library's struct ``Layer``."""

    _fields_ = (("matrix", _P), ("bias", _P))


class BlockFields(ctypes.Structure):
    """The library's struct ``Block``: norms of the two inputs, of queries and keys; layers as in ATTENTION and MLP."""

    _fields_ = (("norms", NormFields * 4), ("layers", LayerFields * 7), ("rotates", _L))


class DecoderFields(ctypes.Structure):
    """The library's struct ``Decoder``."""

    _fields_ = (("blocks", _P), ("count", _L), ("width", _L), ("size", _L), ("scaling", _D), ("last", NormFields))


def _layers(block: Any) -> list[Any]:
    return [getattr(block.self_attn, name) for name in ATTENTION] + [getattr(block.mlp, name) for name in MLP]


def _norms(block: Any) -> list[Any]:
    head_norms = (getattr(block.self_attn, name, None) for name in ("q_norm", "k_norm"))
    return [block.input_layernorm, block.post_attention_layernorm, *head_norms]


class SingleTokens:
    """The step of a token through the blocks of ``decoder``; ``taken`` counts the steps by their number of blocks."""

    def __init__(self, decoder: Any, kernels: Kernels, taken: Counter[int]) -> None:
        self.decode, self.taken, self.cache_name = kernels.library.sparse_decode, taken, cache_name(decoder)
        self.blocks = list(decoder.layers)
        self.layers = [layer for block in self.blocks for layer in _layers(block)]
        self.norms = [norm for block in self.blocks for norm in _norms(block) if norm] + [decoder.norm]
        self.dtype, self.head_size = decoder.norm.weight.dtype, self.blocks[0].self_attn.head_dim
        self.key_heads = [block.self_attn.k_proj.out_features // self.head_size for block in self.blocks]
        self.described_addresses = (0, 0)
        self.fields = DecoderFields()

    def __call__(self, decoder: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        """Return the last hidden state (1, 1, width) for the ``arguments`` of the decoder's forward.

        Return None unless they are one token of one sequence, with a cache of all tokens before it.
        """
        store = self._store(decoder.config, arguments)
        if store is None:
            return None
        positions = arguments.get("position_ids")
        if positions is None:
            positions = torch.tensor([[store.length]], device="cpu")
        hidden = decoder.embed_tokens(arguments["input_ids"]).detach()
        cos, sin = decoder.rotary_emb(hidden, positions)
        if cos.numel() != self.head_size or {hidden.dtype, cos.dtype} != {self.dtype}:
            return None
        if store.length == store.room:
            store.grow()
        if store.fresh or self.described_addresses != self._addresses():
            self._describe(decoder)
        addresses = [part.data_ptr() for block in store.blocks for part in block]
        self.decode(
            ctypes.byref(self.fields), hidden.data_ptr(), cos.data_ptr(), sin.data_ptr(), (_P * len(addresses))(*addresses),
            store.length, store.room, DTYPE_CODES[self.dtype], torch.get_num_threads(),
        )  # fmt: skip
        store.length, store.fresh = store.length + 1, False
        self.taken[len(self.blocks)] += 1
        return hidden

    def _store(self, config: Any, arguments: dict[str, Any]) -> Store | None:
        """Return the cache's store; None where the arguments are no step of this kind."""
        ids, mask, cache = arguments.get("input_ids"), arguments.get("attention_mask"), arguments.get(self.cache_name)
        known_arguments = (*STEP_ARGUMENTS, self.cache_name)
        has_others = any(
            value is not None and value is not False for name, value in arguments.items() if name not in known_arguments
        )
        has_others |= bool(config.output_hidden_states or getattr(config, "output_attentions", False))
        if has_others or ids is None or ids.shape != (1, 1) or type(cache) is not DynamicCache:
            return None
        tokens = cache.get_seq_length() + 1
        if mask is not None and not (mask.shape == (1, tokens) and bool(mask.all())):
            return None
        return store_of(cache, self.dtype, self.key_heads, self.head_size)

    def _addresses(self) -> tuple[int, int]:
        """Return where the first weights and the last are: to look at all takes as long as a block."""
        return self.layers[0]._buffers["values"].data_ptr(), self.norms[-1]._parameters["weight"].data_ptr()

    def _describe(self, decoder: Any) -> None:
        """Make the library's structs anew, and keep the memory that they point to."""
        block_fields = (BlockFields * len(self.blocks))()
        for block, fields in zip(self.blocks, block_fields, strict=True):
            for norm, part_fields in zip(_norms(block), fields.norms, strict=True):
                _describe_norm(norm, part_fields)
            for layer, part_fields in zip(_layers(block), fields.layers, strict=True):
                part_fields.matrix = ctypes.cast(layer.pointer, _P)
                part_fields.bias = None if layer.bias is None else layer.bias.data_ptr()
            fields.rotates = bool(getattr(block.self_attn, "use_rope", True))
        self.fields = DecoderFields(
            ctypes.addressof(block_fields), len(block_fields), len(decoder.norm.weight), self.head_size,
            self.blocks[0].self_attn.scaling,
        )  # fmt: skip
        _describe_norm(decoder.norm, self.fields.last)
        tensors = [
            tensor for module in (*self.layers, *self.norms) for tensor in (*module.buffers(), *module.parameters())
        ]
        storages = [tensor.untyped_storage() for tensor in tensors]
        self.memory_of_fields = block_fields, [layer.pointer for layer in self.layers], storages
        self.described_addresses = self._addresses()


def _describe_norm(norm: Any, fields: NormFields) -> None:
    if norm:
        fields.weight, fields.epsilon = norm.weight.data_ptr(), norm.variance_epsilon


class _Decoder:
    """The mixin of a decoder's class that passes single tokens to the library."""

    single_tokens: SingleTokens

    def forward(self, *args: Any, **arguments: Any) -> Any:
        """Return what the decoder returns."""
        hidden = None if args else self.single_tokens(self, arguments)
        if hidden is None:
            return super().forward(*args, **arguments)  # type: ignore[misc]
        name = self.single_tokens.cache_name
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{name: arguments[name]})


def install(model: Any, kernels: Kernels, taken: Counter[int]) -> None:
    """Let the decoder of a causal ``model`` of one of DECODER_KINDS pass single tokens to the library.

    Nothing changes where a layer is not ours, or a module or setting is not as this kind has it.
    """
    decoder = getattr(model, "model", None)
    if decoder is not None and _fits(decoder):
        decoder.single_tokens = SingleTokens(decoder, kernels, taken)
        plain = type(decoder)
        decoder.__class__ = type(plain.__name__, (_Decoder, plain), {"__module__": plain.__module__})


def _fits(decoder: Any) -> bool:
    kind, config = type(decoder).__name__.removesuffix("Model"), decoder.config
    if kind not in DECODER_KINDS or not type(decoder).__module__.startswith("transformers.models."):
        return False
    blocks, norm = list(decoder.layers), decoder.norm
    if getattr(config, "sliding_window", None) is not None or len(blocks) != config.num_hidden_layers or not blocks:
        return False
    modules = [module for block in blocks for module in (*_norms(block), *_layers(block)) if module is not None]
    biases = [bias for module in modules if (bias := getattr(module, "bias", None)) is not None]
    weights = [module.weight for module in (*modules, norm, decoder.embed_tokens)]
    head_size = blocks[0].self_attn.head_dim
    fits = type(norm).__name__ == f"{kind}RMSNorm" and type(decoder.embed_tokens) is nn.Embedding
    fits &= norm.weight.dtype in DTYPE_CODES and {part.dtype for part in (*weights, *biases)} == {norm.weight.dtype}
    return fits and head_size % 2 == 0 and all(_block_fits(kind, block, head_size) for block in blocks)


def _block_fits(kind: str, block: Any, head_size: int) -> bool:
    attention, layers = block.self_attn, _layers(block)
    modules_by_name = {
        "DecoderLayer": (block,),
        "Attention": (attention,),
        "MLP": (block.mlp,),
        "RMSNorm": [norm for norm in _norms(block) if norm is not None],
    }
    fits = all(type(module).__name__ == kind + name for name, modules in modules_by_name.items() for module in modules)
    fits &= type(block.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    if not fits or any(type(layer) is not KernelLinear for layer in layers):
        return False
    query, key, value, output, gate, up, down = layers
    query_width = key.out_features * attention.num_key_value_groups
    shapes = query_width == query.out_features == output.in_features and key.out_features == value.out_features
    return bool(
        shapes and gate.out_features == up.out_features == down.in_features and attention.head_dim == head_size
        and key.out_features and key.out_features % head_size == 0 and attention.scaling == head_size**-0.5
    )  # fmt: skip
