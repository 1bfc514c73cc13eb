"""Small configurations of every model type that the families table promises, as config.json would have them."""

from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
T5 = {
    "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "is_encoder_decoder": True, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {**GROUPED, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
GPT = {"vocab_size": 96, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}


def each(names: str, config: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), config)


CONFIGS: dict[str, dict[str, Any]] = {
    # decoders
    **each("falcon gpt_neox phi", COMMON),
    **each("gemma gemma2 gemma3_text granite llama mistral nemotron olmo olmo2 qwen2 qwen3 stablelm starcoder2", GROUPED),
    **each("phi3 smollm3", {**GROUPED, "pad_token_id": 0}),
    **each("granitemoe mixtral phimoe", EXPERTS),
    **each("gpt2 gpt_bigcode", GPT),
    "bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": {**GPT, "n_ctx": 64, "rotary_dim": 4},
    "deepseek_v3": {
        **COMMON, "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 0, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    },
    "glm4_moe": {**ROUTED, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 0, "pad_token_id": 0},
    "gpt_neo": {
        "vocab_size": 96, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_oss": {**EXPERTS, "pad_token_id": 0},
    "gptj": {**GPT, "rotary_dim": 4},
    "llama4_text": {
        **EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1,
        "attention_chunk_size": 32, "pad_token_id": 0,
    },
    "mpt": {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "qwen2_moe": {**ROUTED, "num_experts": 4, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {**ROUTED, "num_experts": 4},
    "xglm": {
        "vocab_size": 96, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
        "max_position_embeddings": 64,
    },
    # encoders
    **each("bert camembert deberta ernie megatron-bert mpnet nomic_bert roberta roberta-prelayernorm", COMMON),
    **each("xlm-roberta xlm-roberta-xl", COMMON),
    **each("albert electra", {**COMMON, "embedding_size": 16}),
    "deberta-v2": {
        **COMMON, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"],
        "conv_kernel_size": 3, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    },
    "distilbert": {
        "vocab_size": 96, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64,
    },
    "modernbert": {**COMMON, "pad_token_id": 0},
    # encoder-decoders
    **each("bart blenderbot blenderbot-small m2m_100 mbart pegasus", BART),
    **each("longt5 t5", T5),
    "marian": {**BART, "decoder_vocab_size": 96, "pad_token_id": 1},
    "mt5": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "umt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "whisper": {**BART, "max_source_positions": 64, "max_target_positions": 64, "num_mel_bins": 16, "bos_token_id": 1},
}  # fmt: skip

EXPERT_TYPES = (
    "deepseek_v3", "glm4_moe", "gpt_oss", "granitemoe", "llama4_text", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"
)  # fmt: skip
"""Types that are mixtures of experts."""


def small(model_type: str, **changes: Any) -> dict[str, Any]:
    """The small config.json of a model type."""
    return {"model_type": model_type, **CONFIGS[model_type], **changes}
