"""Which model families DeepSpeed's AutoTP shards rightly: tiny random models at two ranks against the plain model.

``python studies/autotp_families.py [MODEL…]`` prints a Markdown table: parity (relative L2 of float32 logits) and
the share of parameter bytes on the fullest rank, or the reason.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from sparsebench.errors import CellError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.runtime import Setting, Workload, measure_memory

HEADS = 4
PLAIN = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 128}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": HEADS}
BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
}  # fmt: skip
NINE_HEADS = {**GROUPED, "hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3}
DEBERTA = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
}  # fmt: skip
IDS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": HEADS}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("decoder", "llama", GROUPED),
    "llama, 9 heads, 3 KV heads": ("decoder", "llama", NINE_HEADS),
    "llama, 1 KV head": ("decoder", "llama", {**GROUPED, "num_key_value_heads": 1}),
    "llama, odd width of MLP": ("decoder", "llama", {**GROUPED, "intermediate_size": 129}),
    "qwen2": ("decoder", "qwen2", GROUPED),
    "qwen3": ("decoder", "qwen3", {**GROUPED, "head_dim": 16}),
    "opt": ("decoder", "opt", {**PLAIN, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt_neox": ("decoder", "gpt_neox", PLAIN),
    "mistral": ("decoder", "mistral", GROUPED),
    "phi": ("decoder", "phi", PLAIN),
    "phi3": ("decoder", "phi3", {**GROUPED, "pad_token_id": 0}),
    "gemma2": ("decoder", "gemma2", {**GROUPED, "head_dim": 16}),
    "falcon": ("decoder", "falcon", {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "gptj": ("decoder", "gptj", {**GPT, "rotary_dim": 8}),
    "gpt2": ("decoder", "gpt2", GPT),
    "bloom": ("decoder", "bloom", {"hidden_size": 64, "n_layer": 2, "n_head": HEADS}),
    "bert": ("encoder", "bert", PLAIN),
    "bert, 3 heads": ("encoder", "bert", {**PLAIN, "hidden_size": 48, "num_attention_heads": 3}),
    "roberta": ("encoder", "roberta", PLAIN),
    "xlm-roberta": ("encoder", "xlm-roberta", PLAIN),
    "xlm-roberta-xl": ("encoder", "xlm-roberta-xl", PLAIN),
    "megatron-bert": ("encoder", "megatron-bert", PLAIN),
    "deberta-v2": ("encoder", "deberta-v2", {**PLAIN, **DEBERTA}),
    "modernbert": ("encoder", "modernbert", {**PLAIN, **IDS}),
    "electra": ("encoder", "electra", {**PLAIN, "embedding_size": 64}),
    "distilbert": ("encoder", "distilbert", {"dim": 64, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 128}),
    "t5": ("encoder-decoder", "t5", {**T5, "feed_forward_proj": "relu"}),
    "t5, gated": ("encoder-decoder", "t5", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5, 3 heads": ("encoder-decoder", "t5", {**T5, "d_model": 48, "num_heads": 3}),
    "mt5": ("encoder-decoder", "mt5", {**T5, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("encoder-decoder", "umt5", {**T5, "feed_forward_proj": "gated-gelu"}),
    "bart": ("encoder-decoder", "bart", BART),
    "mbart": ("encoder-decoder", "mbart", BART),
    "pegasus": ("encoder-decoder", "pegasus", BART),
}  # fmt: skip


def make(family: str, model_type: str, settings: dict[str, Any], folder: Path) -> None:
    """Write a seeded random model with a small vocabulary to ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=128, max_position_embeddings=64, **settings)
    kind = {"encoder": AutoModel, "decoder": AutoModelForCausalLM, "encoder-decoder": AutoModelForSeq2SeqLM}[family]
    if family == "encoder-decoder":
        config.decoder_start_token_id, config.pad_token_id = 0, 0
    kind.from_config(config).save_pretrained(folder)


def row(name: str, ranks: int) -> str:
    """The table's line for one case."""
    family, model_type, settings = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            make(family, model_type, settings, Path(folder))
            setting = Setting("deepspeed", ranks, Workload(1, 16, 4), dtype="float32", threads=1, timeout_seconds=120)
            result = measure_memory(Path(folder), family, setting)
        except CellError as error:
            lines = error.message.splitlines()
            reason = " … ".join(dict.fromkeys([lines[0], lines[-1]]))
            return f"| {name} | {family} | | | {type(error).__name__}: {reason} |"
        whole = sum(info.nbytes for info in Checkpoint(Path(folder)).tensors.values())
    share = max(one.tensor_bytes for one in result.per_rank) / whole
    assert result.parity is not None
    return f"| {name} | {family} | {result.parity.relative_l2:.1e} | {share:.2f} | right |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="*", metavar="MODEL", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    print("| model | family | parity | bytes on the fullest rank / all | finding |\n|---|---|---|---|---|")
    for name in options.model or CASES:
        print(row(name, options.ranks), flush=True)


if __name__ == "__main__":
    main()
