"""Loading refuses whatever transformers would make up."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.build import initialize_buffers, meta_model
from sparsebench.models.modules.load import load_model
from sparsebench.models.random_weights import write_random
from tests.models.model_zoo import small
from tests.models.replaying import rewrite, rewritten


def without(folder: Path, *names: str) -> Path:
    """The folder, its tensors of these prefixes removed."""

    def remove(tensors: dict[str, Any]) -> None:
        gone = [name for name in tensors if name.startswith(names)]
        assert gone
        for name in gone:
            del tensors[name]

    return rewritten(folder, remove)


@pytest.mark.parametrize(
    ("fixture", "family"), [("tiny_llama", "decoder"), ("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")]
)
def test_each_family_loads_in_its_precision(fixture: str, family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    model = load_model(folder, family)
    assert not model.training
    assert str(model.dtype) == f"torch.{json.loads((folder / 'config.json').read_text())['dtype']}"
    assert load_model(folder, family, "float16").dtype == torch.float16


def test_no_values_are_drawn_for_what_a_file_holds(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("drawn")

    checkpoint = Checkpoint(tiny_llama)
    model = meta_model("decoder", checkpoint.config)
    monkeypatch.setattr(torch.Tensor, "normal_", draw)
    initialize_buffers(model, checkpoint.tensors)
    assert all(bool(buffer.isfinite().all()) for buffer in model.buffers()), "these no file holds"


DEBERTA = {"architectures": ["DebertaV2ForSequenceClassification"], "id2label": {"0": "no", "1": "maybe", "2": "yes"}}
BERT = {"architectures": ["BertForSequenceClassification"], "num_labels": 2}


@pytest.mark.parametrize(
    ("kind", "family", "more", "gone"),
    [
        ("llama", "decoder", {}, "model.layers.1.mlp.up_proj"),
        ("llama", "decoder", {}, "lm_head"),
        ("deberta-v2", "encoder", DEBERTA, "classifier"),
        ("bert", "encoder", BERT, "bert.pooler"),
    ],
)
def test_missing_weights_are_named(kind: str, family: Any, more: dict[str, Any], gone: str, tmp_path: Path) -> None:
    folder = without(write_random(small(kind, **more), tmp_path / "m", family), gone)
    with pytest.raises(ModelError, match=f"weights are missing .*{gone}"):
        load_model(folder, family)


def test_a_tied_head_is_the_table(tmp_path: Path) -> None:
    tied = write_random(small("llama", tie_word_embeddings=True), tmp_path / "tied", "decoder")
    model = load_model(tied, "decoder")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_encoder_without_pooler_weights_has_no_pooler(tmp_path: Path) -> None:
    whole = load_model(write_random(small("bert"), tmp_path / "whole", "encoder", "float32"), "encoder")
    folder = without(write_random(small("bert"), tmp_path / "bare", "encoder", "float32"), "pooler")
    bare = load_model(folder, "encoder")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected, found = whole(tokens), bare(tokens)
    assert torch.equal(expected.last_hidden_state, found.last_hidden_state)
    assert expected.pooler_output is not None and found.pooler_output is None


def test_a_classifier_comes_with_its_head(tmp_path: Path) -> None:
    model = load_model(write_random(small("deberta-v2", **DEBERTA), tmp_path / "m", "encoder"), "encoder")
    assert type(model).__name__ == "DebertaV2ForSequenceClassification"
    assert model.classifier.out_features == 3 and model.config.id2label[2] == "yes"


def test_the_wrong_family_and_shapes_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    folder = write_random(small("bert"), tmp_path / "m", "encoder")
    with pytest.raises(ModelError, match="as encoder-decoder"):
        load_model(folder, "encoder-decoder")
    with pytest.raises(ModelError, match="missing"):
        load_model(folder, "decoder")
    folder = write_random(small("llama"), tmp_path / "llama", "decoder")
    rewrite(folder / "config.json", intermediate_size=64)
    with pytest.raises(ModelError, match="where the model's"):
        load_model(folder, "decoder")


def test_a_tokenizer_is_loaded_or_its_absence_named(tiny_llama: Path, tmp_path: Path) -> None:
    assert load_tokenizer(tiny_llama)("the cat")["input_ids"]
    folder = write_random(small("llama"), tmp_path / "m", "decoder")
    with pytest.raises(ModelError, match="it has no tokenizer"):
        load_tokenizer(folder)


def test_a_tokenizer_beside_widths_that_differ(tiny_llama: Path, tmp_path: Path) -> None:
    """transformers reads config.json for it, and refuses heads of a block's own."""
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    rewrite(folder / "config.json", per_layer_config={"0": {"num_attention_heads": 1}})
    assert load_tokenizer(folder)("the cat")["input_ids"] == load_tokenizer(tiny_llama)("the cat")["input_ids"]
