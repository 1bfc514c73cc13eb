"""Models of random weights for ``doctor --gpu``: four blocks of true width for a GPU, two small ones for a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family


class Shape(NamedTuple):
    """A family and a config.json."""

    family: Family
    config: dict[str, Any]


def _shapes(blocks: int, wide: bool) -> dict[str, Shape]:
    """Return DeBERTa-v2-xxlarge, BERT-large, OPT-1.3b, T5-XL and a Llama of width 2048, or small models like them."""

    def size(true: int, small: int) -> int:
        return true if wide else small

    def config(kind: str, hidden: int, heads: int, inner: int, vocabulary: int, **own: Any) -> dict[str, Any]:
        return {
            "model_type": kind, "vocab_size": size(vocabulary, 128), "hidden_size": size(hidden, 64),
            "num_attention_heads": size(heads, 4), "intermediate_size": size(inner, 128), "num_hidden_layers": blocks,
            "max_position_embeddings": 512, "pad_token_id": 0, **own,
        }  # fmt: skip

    deberta = config(
        "deberta-v2", 1536, 24, 6144, 128100, relative_attention=True, position_buckets=size(256, 8),
        pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm", share_att_key=True,
    )  # fmt: skip
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    opt = config("opt", 2048, 32, 8192, 50272, ffn_dim=size(8192, 128), word_embed_proj_dim=size(2048, 64), **ends)
    t5 = {
        "model_type": "t5", "vocab_size": size(32128, 128), "d_model": size(2048, 64), "d_kv": size(64, 16),
        "d_ff": size(5120, 96), "num_layers": blocks, "num_decoder_layers": blocks, "num_heads": size(32, 4),
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    llama = config("llama", 2048, 32, 8192, 32000, num_key_value_heads=size(8, 2), bos_token_id=1, eos_token_id=2)
    return {
        "deberta": Shape("encoder", deberta), "bert": Shape("encoder", config("bert", 1024, 16, 4096, 30522)),
        "opt": Shape("decoder", opt), "t5": Shape("encoder-decoder", t5), "llama": Shape("decoder", llama),
    }  # fmt: skip


TRUE, TINY = _shapes(4, True), _shapes(2, False)


def tokenizer(words: int) -> Any:
    """Return a tokenizer of ``words`` words (``w0``, …) and four special tokens: a random model needs no real text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(words))]
    core = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
