"""The topology read from names, against the modules of stock transformers models."""

import re
from functools import cache

import pytest
import torch

from sparsebench.models.files.checkpoint import TensorInfo
from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.models.modules.build import meta_model
from sparsebench.models.modules.experts import is_fused, is_transposed
from sparsebench.models.shape.topology import Part, part
from tests.models.model_zoo import CONFIGS, each, small

# What each linear layer of a block is, written down from the published architectures: kind=module, per layer.
LLAMA = "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.o_proj "
LLAMA += "gate=mlp.gate_proj up=mlp.up_proj down=mlp.down_proj"
OPT = "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.out_proj up=fc1 down=fc2"
BERT = "q=attention.self.query k=attention.self.key v=attention.self.value o=attention.output.dense "
BERT += "up=intermediate.dense down=output.dense"
GPT2 = "qkv=attn.c_attn o=attn.c_proj up=mlp.c_fc down=mlp.c_proj"
GPTJ = "q=attn.q_proj k=attn.k_proj v=attn.v_proj o=attn.out_proj up=mlp.fc_in down=mlp.fc_out"
BLOOM = "qkv=self_attention.query_key_value o=self_attention.dense up=mlp.dense_h_to_4h down=mlp.dense_4h_to_h"
BART_DECODER = f"{OPT} cross_q=encoder_attn.q_proj cross_k=encoder_attn.k_proj cross_v=encoder_attn.v_proj "
BART_DECODER += "cross_o=encoder_attn.out_proj"
T5_SELF = "q=layer.0.SelfAttention.q k=layer.0.SelfAttention.k v=layer.0.SelfAttention.v o=layer.0.SelfAttention.o"
T5_CROSS = " ".join(f"cross_{letter}=layer.1.EncDecAttention.{letter}" for letter in "qkvo")


def t5_mlp(layer: int, gated: bool) -> str:
    module = f"layer.{layer}.DenseReluDense"
    up = f"gate={module}.wi_0 up={module}.wi_1" if gated else f"up={module}.wi"
    return f"{up} down={module}.wo"


ATTENTION = " ".join(LLAMA.split()[:4])
MOE = f"{ATTENTION} gate_up=mlp.experts.gate_up_proj down=mlp.experts.down_proj"
SHARED = " ".join(f"{kind}=mlp.shared_experts.{kind}_proj" for kind in ("gate", "up", "down"))
BARTS = "bart blenderbot blenderbot-small m2m_100 marian mbart pegasus whisper"
BLOCKS: dict[str, str] = {
    **each("gemma gemma2 gemma3_text granite llama mistral olmo olmo2 qwen2 qwen3 smollm3 stablelm nomic_bert", LLAMA),
    **each("opt xglm", OPT),
    **each("gpt2 gpt_bigcode", GPT2),
    **each("bloom falcon", BLOOM),
    **each("gpt_oss mixtral olmoe phimoe qwen3_moe", MOE),
    "glm4_moe": f"{MOE} {SHARED}",
    "qwen2_moe": f"{MOE} {SHARED.replace('experts', 'expert')}",
    "granitemoe": MOE.replace("mlp", "block_sparse_moe"),
    "llama4_text": f"{MOE} {SHARED.replace('experts', 'expert')}".replace("mlp", "feed_forward"),
    "deepseek_v3": "q=self_attn.q_a_proj q=self_attn.q_b_proj kv=self_attn.kv_a_proj_with_mqa kv=self_attn.kv_b_proj "
    f"{MOE.removeprefix(' '.join(ATTENTION.split()[:3]))} {SHARED}",
    "codegen": "qkv=attn.qkv_proj o=attn.out_proj up=mlp.fc_in down=mlp.fc_out",
    "gpt_neo": "q=attn.attention.q_proj k=attn.attention.k_proj v=attn.attention.v_proj o=attn.attention.out_proj "
    "up=mlp.c_fc down=mlp.c_proj",
    "gpt_neox": BLOOM.replace("self_attention", "attention"),
    "gptj": GPTJ,
    "mpt": "qkv=attn.Wqkv o=attn.out_proj up=ffn.up_proj down=ffn.down_proj",
    "nemotron": LLAMA.replace("gate=mlp.gate_proj ", ""),
    "phi": "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.dense up=mlp.fc1 down=mlp.fc2",
    "phi3": "qkv=self_attn.qkv_proj o=self_attn.o_proj gate_up=mlp.gate_up_proj down=mlp.down_proj",
    "starcoder2": LLAMA.replace("gate=mlp.gate_proj ", "").replace("up_proj", "c_fc").replace("down_proj", "c_proj"),
    **each("bert camembert electra ernie megatron-bert roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl", BERT),
    "albert": "q=albert_layers.0.attention.query k=albert_layers.0.attention.key v=albert_layers.0.attention.value "
    "o=albert_layers.0.attention.dense up=albert_layers.0.ffn down=albert_layers.0.ffn_output",
    "deberta": "qkv=attention.self.in_proj o=attention.output.dense up=intermediate.dense down=output.dense",
    "deberta-v2": BERT.replace("query", "query_proj").replace("key", "key_proj").replace("value", "value_proj"),
    "distilbert": "q=attention.q_lin k=attention.k_lin v=attention.v_lin o=attention.out_lin up=ffn.lin1 down=ffn.lin2",
    "modernbert": "qkv=attn.Wqkv o=attn.Wo gate_up=mlp.Wi down=mlp.Wo",
    "mpnet": "q=attention.attn.q k=attention.attn.k v=attention.attn.v o=attention.attn.o "
    "up=intermediate.dense down=output.dense",
    **each(BARTS, OPT),
    "t5": f"{T5_SELF} {t5_mlp(1, False)}",
    "longt5": f"{T5_SELF.replace('SelfA', 'LocalSelfA')} {t5_mlp(1, False)}",
    **each("mt5 umt5", f"{T5_SELF} {t5_mlp(1, True)}"),
}
DECODER_BLOCKS = {
    **each(BARTS, BART_DECODER),
    **each("t5 longt5", f"{T5_SELF} {T5_CROSS} {t5_mlp(2, False)}"),
    **each("mt5 umt5", f"{T5_SELF} {T5_CROSS} {t5_mlp(2, True)}"),
}


@cache
def topology(model_type: str) -> tuple[dict[str, Part], dict[str, bool]]:
    """Every tensor's part, and each linear layer inside a list of blocks, fused experts too, with whether it lies (in, out)."""
    from transformers.pytorch_utils import Conv1D

    family, config = MODEL_TYPES[model_type], small(model_type)
    model = meta_model(family, config)
    found = {
        name: part(TensorInfo(name, "F32", tuple(tensor.shape)), config, family)
        for name, tensor in model.state_dict().items()
    }
    linear = {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and any(step.isdigit() for step in name.split("."))
    }
    linear |= {
        f"{name}.{attribute}": is_transposed(module)
        for name, module in model.named_modules()
        if is_fused(module)
        for attribute, tensor in module.named_parameters()
        if tensor.ndim == 3
    }
    routers = {name for name in linear if re.search(r"\.(router|shared_expert_gate)\.weight$", name)}
    return found, {name: turned for name, turned in linear.items() if name not in routers}


def test_every_model_type_is_tested() -> None:
    assert set(MODEL_TYPES) == set(CONFIGS) == set(BLOCKS)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_prunable_are_the_linear_weights_of_the_blocks_and_nothing_else(model_type: str) -> None:
    found, linear = topology(model_type)
    assert {name for name, place in found.items() if place.prunable} == set(linear)
    assert {name for name, place in found.items() if place.transposed} == {
        name for name, conv in linear.items() if conv
    }


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_kinds_layers_and_sides_are_the_architectures(model_type: str) -> None:
    found, _ = topology(model_type)
    family = MODEL_TYPES[model_type]
    seen: dict[tuple[str, int], set[str]] = {}
    for name, place in found.items():
        if place.prunable:
            assert place.block is not None
            module = re.split(rf"\.{place.block}\.", name, maxsplit=1)[1].removesuffix(".weight")
            seen.setdefault((place.stack, place.block), set()).add(f"{place.kind}={module}")
    depth = 1 if model_type == "albert" else 2
    sides = {"encoder": BLOCKS, "decoder": DECODER_BLOCKS} if family == "encoder-decoder" else {family: BLOCKS}
    assert seen == {(side, n): set(table[model_type].split()) for side, table in sides.items() for n in range(depth)}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_everything_else_is_norm_bias_embedding_or_head(model_type: str) -> None:
    found, _ = topology(model_type)
    rest = {name: place.kind for name, place in found.items() if not place.prunable}
    assert not {
        name for name, kind in rest.items() if kind not in ("norm", "bias", "embedding", "head", "router", "other")
    }
    for name, kind in rest.items():
        if "norm" in name.lower() and name.endswith("weight"):
            assert kind == "norm", name
        if name.endswith("bias") or name == "final_logits_bias":
            assert kind == "bias", name
        if re.search(
            r"(embed_tokens|word_embeddings|wte|shared|embed_in|tok_embeddings|relative_attention_bias)\.weight", name
        ):
            assert kind == "embedding", name
        if re.search(r"^(lm_head|proj_out|pooler(\.dense)?)\.weight", name):
            assert kind == "head", name
    others = {name for name, kind in rest.items() if kind == "other"}
    assert ("router" in rest.values()) == any("experts" in name for name in found)
    # A convolution beside the attention of DeBERTa-v2, Whisper's two over the spectrogram, GPT-OSS's sinks.
    assert all(".conv" in name or name.endswith(".sinks") for name in others), others


def test_head_of_a_classifier_is_not_prunable() -> None:
    config = small("roberta", architectures=["RobertaForSequenceClassification"], num_labels=3)
    for name, tensor in meta_model("encoder", config).state_dict().items():
        if name.startswith("classifier") and name.endswith("weight"):
            place = part(TensorInfo(name, "F32", tuple(tensor.shape)), config, "encoder")
            assert (place.kind, place.prunable, place.block) == ("head", False, None)
