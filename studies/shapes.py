"""Random weights in the shapes of large models, with a small model's tokenizer: what memory and time are measured on.

    python studies/shapes.py 7b OUT --tokenizer FOLDER [--blocks 4]

FOLDER is a checkpoint whose tokenizer has at most 49,152 tokens. With ``--blocks`` the model is less deep, and as wide.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from sparsebench.models.random_weights import write_random

LLAMA = {"model_type": "llama", "torch_dtype": "bfloat16", "max_position_embeddings": 4096, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # Llama 3.2 1B but for the vocabulary.
    "1b": ("decoder", {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256,
                       "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}),
    # Qwen2.5 1.5B.
    "1.5b": ("decoder", {**LLAMA, "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "vocab_size": 151936,
                         "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
                         "tie_word_embeddings": True}),
    # Llama 7B but for the vocabulary.
    "7b": ("decoder", {**LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 49152,
                       "num_attention_heads": 32, "tie_word_embeddings": False}),
    # A gated T5 of 1.1 billion parameters.
    "t5-1b": ("encoder-decoder", {"model_type": "t5", "torch_dtype": "bfloat16", "d_model": 1536, "d_kv": 64, "d_ff": 4096,
                                  "num_layers": 16, "num_decoder_layers": 16, "num_heads": 24, "vocab_size": 49152,
                                  "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "pad_token_id": 0,
                                  "eos_token_id": 1, "decoder_start_token_id": 0}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--blocks", type=int)
    asked = parser.parse_args()
    family, config = SHAPES[asked.shape]
    if asked.blocks:
        depths = [key for key in config if key in ("num_hidden_layers", "num_layers", "num_decoder_layers")]
        config = {**config, **dict.fromkeys(depths, asked.blocks)}
    write_random(config, asked.out, family)  # type: ignore[arg-type]
    for path in asked.tokenizer.glob("*token*"):
        shutil.copy(path, asked.out)
    print(f"{asked.out}: {sum(path.stat().st_size for path in asked.out.glob('*.safetensors')) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
