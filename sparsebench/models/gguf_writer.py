"""Writing a model's folder as a GGUF file, which llama.cpp and the programs built on it load.

Names and shapes are those of llama.cpp's own converter; the types of a mixture such as Q4_K_M are those of its
quantizer. The package gguf has the names, llama.cpp's library (``files/llamacpp``) rounds the weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, Refusal
from sparsebench.models.files import llamacpp
from sparsebench.models.files.building import temporary
from sparsebench.models.files.checkpoint import CONV1D_TYPES, Checkpoint
from sparsebench.models.files.families import PER_LAYER, dimensions, has_classifier, has_tagger, transformers_config
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.files.text import longest_input
from sparsebench.models.gguf_vocabulary import add_vocabulary
from sparsebench.models.modules.skipping import skips_weights
from sparsebench.models.shape.topology import parts, weight_tensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from gguf import GGUFWriter, TensorNameMap

FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The types of a file of floats, by torch's names."""
QUANTIZED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
"""The types of a file of rounded weights: most matrices have it, or in a mixture (``_M``) it without its end."""
TYPES = (*FLOATS.values(), *QUANTIZED)
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
"""The tables of the vocabulary. Where a file lacks the head, llama.cpp takes the embeddings, in types that may be tied."""
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes where a row is no whole number of blocks of 256; F16 where it is none of 32 either."""


@dataclass(frozen=True)
class GgufArchitecture:
    """How llama.cpp holds a model type: its ``name`` there, and what differs from transformers' tensors.

    ``activation`` is what the name of the only activation function begins with that llama.cpp computes for the type.
    ``interleaved``: the rows of query and key heads are reordered. ``norm_offset`` is added to the norms' weights. An
    ``encoder`` gives hidden states. ``fixed`` has the only values of some keys of config.json with which llama.cpp
    computes the same as transformers. Heads are together as wide as the hidden states, unless
    it takes ``any_head_size``.
    """

    name: str
    activation: str = "silu"
    encoder: bool = False
    interleaved: bool = False
    norm_offset: float = 0.0
    fixed: Mapping[str, object] = field(default_factory=dict)
    any_head_size: bool = False


_UNBIASED, _UNTIED, _PLAIN_QK = {"attention_bias": False}, {"tie_word_embeddings": False}, {"qk_layernorm": False}
_GEMMA_FIXED = {**_UNBIASED, "tie_word_embeddings": True}
_SMOLLM3_PERIOD = 4
"""llama.cpp rotates queries and keys in all but each fourth block of a SmolLM3, whatever config.json says."""
_SMOLLM3_FIXED = {**_UNBIASED, "mlp_bias": False, "no_rope_layer_interval": _SMOLLM3_PERIOD}
_GPT2_FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
ARCHITECTURES = {
    "llama": GgufArchitecture("llama", interleaved=True, any_head_size=True),
    "mistral": GgufArchitecture("llama", interleaved=True, any_head_size=True),
    "qwen2": GgufArchitecture("qwen2"),
    "qwen3": GgufArchitecture("qwen3", fixed=_UNBIASED, any_head_size=True),
    "gpt2": GgufArchitecture("gpt2", activation="gelu", fixed=_GPT2_FIXED),
    "gemma": GgufArchitecture("gemma", activation="gelu", norm_offset=1.0, fixed=_GEMMA_FIXED, any_head_size=True),
    "olmo2": GgufArchitecture("olmo2", fixed={**_UNBIASED, **_UNTIED}),
    "starcoder2": GgufArchitecture("starcoder2", activation="gelu", fixed={"use_bias": True}),
    "stablelm": GgufArchitecture("stablelm", fixed={**_PLAIN_QK, **_UNTIED}),
    "smollm3": GgufArchitecture("smollm3", interleaved=True, fixed=_SMOLLM3_FIXED, any_head_size=True),
    "phi": GgufArchitecture("phi2", activation="gelu", fixed={**_PLAIN_QK, **_UNTIED}),
    "phi3": GgufArchitecture("phi3"),
    "olmo": GgufArchitecture("olmo", interleaved=True, fixed=_UNBIASED),
    "nemotron": GgufArchitecture("nemotron", activation="relu2", norm_offset=1.0, fixed=_UNTIED),
    "bert": GgufArchitecture("bert", activation="gelu", encoder=True, fixed={"is_decoder": False}),
}
"""The model types that are written. A test runs each by llama.cpp and compares its logits with transformers'."""
_UNUSED = re.compile(r"(^|\.)(pooler|cls)\.")
"""Tensors of an encoder that its hidden states do not depend on."""
UNEVEN = Refusal("GGUF holds one width for all blocks, and these differ", "leave `uneven` out")


def gguf_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """Return why a model with this config.json cannot be written as GGUF; None where it can."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        return Refusal(f"{kind} models are not written as GGUF", f"name a model of type {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[kind]
    if architecture.encoder and (has_classifier(config) or has_tagger(config)):
        return Refusal(
            "llama.cpp gives an encoder's hidden states, without its head", "name a checkpoint without a head"
        )
    activation = config.get("hidden_act") or config.get("activation_function") or architecture.activation
    if not str(activation).startswith(architecture.activation):
        return Refusal(
            f"llama.cpp computes {architecture.activation} in {kind} models, not {activation}", "name another model"
        )
    if refusal := _layout_refusal(kind, config):
        return refusal
    if config.get(PER_LAYER):
        return UNEVEN
    if skips_weights(config):
        return Refusal("llama.cpp computes with all weights of a GGUF file", "leave out `skip` and `moefy`")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
        return Refusal(f"rotary positions of type {scaling} are not written as GGUF", "name a model without them")
    return None


def _layout_refusal(kind: str, config: Mapping[str, Any]) -> Refusal | None:
    """Return which setting of a config.json llama.cpp has no tensors or no arithmetic for; None where there is none."""
    architecture = ARCHITECTURES[kind]
    for key, fixed in architecture.fixed.items():
        if (stated := config.get(key, fixed)) != fixed:
            return Refusal(
                f"llama.cpp computes {kind} models with `{key}: {fixed}`, not {stated}", "name another model"
            )
    rotated = config.get("no_rope_layers")
    if rotated and rotated != [int(layer % _SMOLLM3_PERIOD > 0) for layer in range(1, len(rotated) + 1)]:
        reason = f"llama.cpp leaves each {_SMOLLM3_PERIOD}th block of a {kind} model unrotated, not `no_rope_layers`"
        return Refusal(reason, "name another model")
    if config.get("head_dim") and not architecture.any_head_size:
        size = dimensions(config)
        if size.heads * size.head_size != size.hidden:
            reason = f"llama.cpp's {kind} models have {size.hidden} / {size.heads} as `head_dim`, not {size.head_size}"
            return Refusal(reason, "remove neurons or blocks instead of heads")
    return None


def write_gguf(
    folder: Path,
    out: Path,
    type: str = "BF16",
    importance: Mapping[str, torch.Tensor] | None = None,
    written: Callable[[str, torch.Tensor, int], None] | None = None,
) -> Counter[str]:
    """Write the model in ``folder`` to the file ``out``, tokenizer included; return how many tensors have which type.

    ``type`` is one of TYPES. Quantized folders are written as the floats that they stand for. ``importance`` has the
    mean squares of a matrix's inputs, by its name in the folder: they weight the errors of rounding. ``written`` gets
    each tensor's name in the folder (each of its names, where the folder repeats a tied one), the float32 values that
    the file stands for, and their bytes in the file. Raises UnsupportedError for a model that GGUF cannot hold, and
    where rounding lacks the package xllamacpp; ModelError for an unknown type or tensor.
    """
    if type not in TYPES:
        raise ModelError(f"there is no GGUF type {type!r} here", f"choose from {', '.join(TYPES)}")
    checkpoint = open_checkpoint(folder)
    if refusal := gguf_refusal(checkpoint.config):
        raise refusal.error()
    return _GgufFile(checkpoint, type, importance or {}).write(Path(out), written)


class _GgufFile:
    """A file to write: ``names`` maps its tensors' names to the checkpoint's, ``kinds`` to their types."""

    def __init__(self, checkpoint: Checkpoint, type: str, importance: Mapping[str, torch.Tensor]) -> None:
        import gguf

        self.checkpoint, self.type, self.importance = checkpoint, type, importance
        self.architecture = ARCHITECTURES[str(checkpoint.config["model_type"])]
        self.transposed = checkpoint.config["model_type"] in CONV1D_TYPES
        self.config = transformers_config(checkpoint.config).to_dict()  # with the values that config.json leaves out
        self.size = dimensions(self.config)
        architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture.name)
        table = gguf.get_tensor_name_map(architecture, self.size.layers)
        self.names: dict[str, str] = {}
        for name in weight_tensors(checkpoint, parts(checkpoint, "decoder")):
            if self.architecture.encoder and _UNUSED.search(name):
                continue
            gguf_name = _gguf_name(table, name)
            if gguf_name is None:
                raise ModelError(f"{checkpoint.folder}: GGUF has no name for {name}", "leave the model out")
            self.names[gguf_name] = name
        self.repeats = self._add_tied(table)
        self.kinds = {name: self._kind(name) for name in self.names}

    def _add_tied(self, table: TensorNameMap) -> dict[str, list[str]]:
        """Name the token embeddings where a tied head is stored before them, and the head where the type needs one.

        Return for a tensor of the file the further names under which the checkpoint holds it.
        """
        ties = self.checkpoint.ties
        needs_head = self.architecture.fixed.get("tie_word_embeddings") is False
        for name, original in ties.items():
            gguf_name = _gguf_name(table, name)
            if gguf_name == EMBEDDINGS and EMBEDDINGS not in self.names:
                self.names[EMBEDDINGS] = name
                if self.names.get(HEAD) == original and not needs_head:
                    del self.names[HEAD]
            elif gguf_name == HEAD and needs_head:
                self.names.setdefault(HEAD, name)
        repeats: dict[str, list[str]] = {}
        gguf_names = {ties.get(name, name): gguf_name for gguf_name, name in self.names.items()}
        for name in dict.fromkeys([*ties, *ties.values()]):
            gguf_name = gguf_names.get(ties.get(name, name))
            if gguf_name and name not in self.names.values():
                repeats.setdefault(gguf_name, []).append(name)
        return repeats

    def write(self, out: Path, written: Callable[[str, torch.Tensor, int], None] | None) -> Counter[str]:
        """Write the file, one tensor in memory at a time; it appears whole."""
        import gguf
        import numpy as np
        import torch

        writer = gguf.GGUFWriter(None, self.architecture.name)
        self._describe(writer)
        add_vocabulary(writer, self.checkpoint.folder, self.size.vocabulary)
        for name, kind in self.kinds.items():
            quantization, shape = gguf.GGMLQuantizationType[kind], self._shape(name)
            size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, quantization)))
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=quantization)
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary(out) as partial:
            writer.write_header_to_file(partial / out.name)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, kind in self.kinds.items():
                data = self._coded(name, kind)
                writer.write_tensor_data(data)
                if written:
                    values = gguf.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(self._shape(name))
                    stored = self._as_stored(name, torch.from_numpy(values))
                    for stored_name in (self.names[name], *self.repeats.get(name, ())):
                        written(stored_name, stored, data.nbytes)
            writer.close()
            (partial / out.name).replace(out)
        return Counter(self.kinds.values())

    def _describe(self, writer: GGUFWriter) -> None:
        """Add the model's dimensions to the header."""
        import gguf

        config, size = self.config, self.size
        rope = {**config, **(config.get("rope_parameters") or {})}
        writer.add_file_type(
            gguf.LlamaFileType.ALL_F32 if self.type == "F32" else gguf.LlamaFileType[f"MOSTLY_{self.type}"]
        )
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_name(str(self.checkpoint.config.get("_name_or_path") or self.checkpoint.folder.name))
        writer.add_block_count(size.layers)
        # Of these types llama.cpp attends to all tokens: within the window that is the same.
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        writer.add_context_length(min(filter(None, (longest_input(config) or 2048, window))))
        writer.add_embedding_length(size.hidden)
        writer.add_feed_forward_length(size.inner)
        writer.add_head_count(size.heads)
        writer.add_head_count_kv(size.key_heads)
        writer.add_key_length(size.head_size)
        writer.add_value_length(size.head_size)
        writer.add_vocab_size(size.vocabulary)
        writer.add_rope_dimension_count(int(size.head_size * rope.get("partial_rotary_factor", 1)))
        writer.add_rope_freq_base(float(rope.get("rope_theta") or 10000.0))
        if "rms_norm_eps" in config:
            writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        else:
            names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
            writer.add_layer_norm_eps(next((config[name] for name in names if name in config), 1e-5))
        if self.architecture.encoder:
            writer.add_causal_attention(False)
            writer.add_pooling_type(gguf.PoolingType.NONE)
            writer.add_token_type_count(config.get("type_vocab_size", 2))
        if config.get("clip_qkv"):
            writer.add_clamp_kqv(config["clip_qkv"])
        if "use_parallel_residual" in config:
            writer.add_parallel_residual(config["use_parallel_residual"])

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.checkpoint.tensors[self.names[name]].shape
        return shape[::-1] if self._is_transposed(name) else shape

    def _is_transposed(self, name: str) -> bool:
        return self.transposed and name.startswith("blk.") and len(self.checkpoint.tensors[self.names[name]].shape) == 2

    def _heads(self, name: str) -> int:
        """Return how many heads' rows are reordered in this tensor; 0 for others."""
        if not self.architecture.interleaved:
            return 0
        part = name.rpartition(".")[0].rpartition(".")[2]
        return {"attn_q": self.size.heads, "attn_k": self.size.key_heads}.get(part, 0)

    def _values(self, name: str) -> torch.Tensor:
        """Load a tensor in float32, as llama.cpp holds it."""
        values = self.checkpoint.load(self.names[name]).float()
        if self._is_transposed(name):
            values = values.T.contiguous()
        if heads := self._heads(name):
            values = values.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(values.shape)
        if name.endswith("norm.weight"):
            values = values + self.architecture.norm_offset
        return values

    def _as_stored(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Reverse ``_values``."""
        if name.endswith("norm.weight"):
            values = values - self.architecture.norm_offset
        if heads := self._heads(name):
            values = values.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(values.shape)
        return values.T.contiguous() if self._is_transposed(name) else values

    def _coded(self, name: str, kind: str) -> npt.NDArray[np.generic]:
        """Return a tensor's bytes in the type ``kind``, with its rows as rows."""
        import gguf
        import torch

        values = self._values(name)
        if kind == "F32":
            return values.numpy()
        if kind in FLOATS.values():
            half = torch.float16 if kind == "F16" else torch.bfloat16
            return values.to(half).contiguous().view(torch.uint8).numpy()
        quantization = gguf.GGMLQuantizationType[kind]
        _, row = gguf.quant_shape_to_byte_shape(values.shape, quantization)
        squares = self.importance.get(self.names[name])
        weights: Any = values.numpy()
        return llamacpp.quantize(weights, int(quantization), row, None if squares is None else squares.float().numpy())

    def _kind(self, name: str) -> str:
        """Return the type that llama.cpp's quantizer gives to a tensor in a file of this type."""
        shape = self._shape(name)
        if len(shape) < 2 or "_norm." in name or name in ("position_embd.weight", "token_types.weight"):
            return "F32"
        if self.type in FLOATS.values():
            return self.type
        kind = self._mixed(name, self.type.removesuffix("_M"))
        if shape[1] % _block(kind):
            kind = _FALLBACKS.get(kind, "F16")
        return "F16" if shape[1] % _block(kind) else kind

    def _mixed(self, name: str, usual: str) -> str:
        """Return the type of a matrix before its shape is considered: some are worth more bits than ``usual``."""
        if name == HEAD or (name == EMBEDDINGS and HEAD not in self.names):
            return "Q8_0" if usual == "Q8_0" or self._shape(name)[1] % _block(usual) else "Q6_K"
        match = re.match(r"blk\.(\d+)\.(\w+)\.", name)
        layer, part = (int(match[1]), match[2]) if match else (0, "")
        eighth = self.size.layers // 8
        if self.type.endswith("_M"):
            many_bits = layer < eighth or layer >= 7 * self.size.layers // 8 or (layer - eighth) % 3 == 2
            # llama.cpp takes a fused attn_qkv for a value matrix.
            if part in ("attn_qkv", "attn_v", "ffn_down") and many_bits:
                return "Q6_K"
        if usual == "Q4_0" and part == "ffn_down" and self.importance and layer < eighth:
            return "Q4_1"
        return usual


def _gguf_name(table: TensorNameMap, name: str) -> str | None:
    """Return llama.cpp's name for a checkpoint's tensor; None where it has none."""
    spellings = (name, f"model.{name}", f"transformer.{name}", name.removeprefix("bert."))
    gguf_names = (table.get_name(spelling, (".weight", ".bias")) for spelling in spellings)
    return next(filter(None, gguf_names), None)


def _block(kind: str) -> int:
    import gguf

    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])
