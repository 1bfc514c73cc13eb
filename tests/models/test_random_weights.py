"""Random weights: every family loads with stock transformers, whole and finite, the same each time."""

import json
from pathlib import Path

import pytest
import torch

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES, auto_class
from sparsebench.models.random_weights import write_random
from tests.models.model_zoo import small


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_stock_transformers_finds_every_weight(model_type: str, tmp_path: Path) -> None:
    family = MODEL_TYPES[model_type]
    folder = write_random(small(model_type), tmp_path / "model", family, "bfloat16", seed=1)
    config = json.loads((folder / "config.json").read_text())
    model, info = auto_class(family, config).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert config["dtype"] == "bfloat16"
    for name, tensor in model.state_dict().items():
        assert bool(tensor.isfinite().all()), name
    assert not Checkpoint(folder).ties


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    written = [
        write_random(small("llama"), tmp_path / str(n), "decoder", "bfloat16", seed).joinpath("model.safetensors")
        for n, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (path.read_bytes() for path in written)
    assert first == again != other


def test_matrices_are_normal_and_gains_are_what_the_architecture_starts_with(tmp_path: Path) -> None:
    wide = small("llama", hidden_size=256, initializer_range=0.05, tie_word_embeddings=True)
    checkpoint = Checkpoint(write_random(wide, tmp_path / "llama", "decoder", "float32"))
    assert "lm_head.weight" not in checkpoint.tensors
    weight = checkpoint.load("model.layers.1.mlp.up_proj.weight")
    assert abs(float(weight.std()) / 0.05 - 1) < 0.05 and abs(float(weight.mean())) < 0.005
    assert not torch.equal(weight, checkpoint.load("model.layers.0.mlp.up_proj.weight"))
    assert bool((checkpoint.load("model.norm.weight") == 1).all())
    # Gemma multiplies by 1 + w.
    gemma = Checkpoint(write_random(small("gemma"), tmp_path / "gemma", "decoder"))
    assert bool((gemma.load("model.norm.weight") == 0).all())


def test_a_head_that_the_config_does_not_tie_is_stored(tmp_path: Path) -> None:
    untied = Checkpoint(write_random(small("mt5"), tmp_path / "mt5", "encoder-decoder"))
    tied = Checkpoint(write_random(small("t5"), tmp_path / "t5", "encoder-decoder"))
    assert "lm_head.weight" in untied.tensors and "lm_head.weight" not in tied.tensors
    for checkpoint in (untied, tied):
        assert "shared.weight" in checkpoint.tensors and "encoder.embed_tokens.weight" not in checkpoint.tensors


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model type 'lama'"):
        write_random({"model_type": "lama"}, tmp_path / "model", "decoder")
    with pytest.raises(ModelError, match=r"'bert' as encoder-decoder"):
        write_random(small("bert"), tmp_path / "model", "encoder-decoder")
    assert not list(tmp_path.iterdir())
