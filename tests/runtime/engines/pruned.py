"""Model folders with zeros, for the engines' tests, and engines that have started."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.runtime.engines import engine
from tests.storage.model_folders import prune

FAMILIES = {"tiny_llama": "decoder", "tiny_bert": "encoder", "tiny_t5": "encoder-decoder"}


def gpt2(folder: Path) -> Path:
    """A tiny GPT-2, whose linear layers are Conv1D; float32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def dense_model(name: str, request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Any]:
    """One of the tiny models, or a GPT-2 that is made in a folder, and its family."""
    return (gpt2(folder), "decoder") if name == "gpt2" else (request.getfixturevalue(name), FAMILIES[name])


def started(name: str) -> Any:
    """An engine that is alone, ready to load."""
    found = engine(name)
    found.start(0, 1)
    return found


__all__ = ["FAMILIES", "dense_model", "gpt2", "prune", "started"]
