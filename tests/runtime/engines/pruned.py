"""Model folders with zeros, for the engines' tests."""

from pathlib import Path

import torch

from tests.storage.model_folders import prune

FAMILIES = {"tiny_llama": "decoder", "tiny_bert": "encoder", "tiny_t5": "encoder-decoder"}


def gpt2(folder: Path) -> Path:
    """A tiny GPT-2, whose linear layers are Conv1D; float32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


__all__ = ["FAMILIES", "gpt2", "prune"]
