"""A checkpoint's own family, from its config.json."""

from dataclasses import replace
from typing import Any

import pytest

from sparsebench.errors import ModelError
from sparsebench.models.files import families
from sparsebench.models.files.families import auto_class, dimensions, family_of, has_classifier
from sparsebench.models.modules.build import meta_model


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "new", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "new", "architectures": ["NewForCausalLM"]}, "decoder"),
        ({"model_type": "new", "architectures": ["NewLMHeadModel"]}, "decoder"),
        ({"model_type": "new", "architectures": ["NewForMaskedLM"]}, "encoder"),
        ({"model_type": "new", "architectures": ["NewModel"]}, None),
        ({"model_type": "bert", "is_decoder": True, "architectures": ["BertLMHeadModel"]}, "decoder"),
        ({"model_type": "bert", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "decoder"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "encoder"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": False}, "decoder"),
        ({}, None),
    ],
)
def test_unknown_types_by_architecture(config: dict[str, Any], family: str | None) -> None:
    assert family_of(config) == family


def test_the_auto_class_fits_family_and_head() -> None:
    nli = {"architectures": ["RobertaForSequenceClassification"]}
    assert has_classifier(nli) and not has_classifier({"architectures": ["BertModel"]}) and not has_classifier({})
    assert auto_class("encoder", nli).__name__ == "AutoModelForSequenceClassification"
    assert auto_class("encoder", {}).__name__ == "AutoModel"
    assert auto_class("decoder", {}).__name__ == "AutoModelForCausalLM"
    assert auto_class("encoder-decoder", {}).__name__ == "AutoModelForSeq2SeqLM"
    assert auto_class("encoder-decoder", {"model_type": "whisper"}).__name__ == "AutoModelForSpeechSeq2Seq"
    with pytest.raises(ModelError, match="no family 'coder'"):
        auto_class("coder", {})


NESTED = {"model_type": "gemma3_text", "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("distilbert", {"dim": 8, "hidden_dim": 40, "n_layers": 3, "n_heads": 4}, (8, 3, 40, 4)),
        ("distilbert", {"n_heads": 4}, (768, 6, 3072, 4)),  # what transformers takes where nothing is said
        ("mpt", {"d_model": 8, "n_layers": 3, "n_heads": 4}, (8, 3, 32, 4)),
        ("falcon", {"hidden_size": 8, "n_layer": 3, "n_head": 4, "ffn_hidden_size": 40}, (8, 3, 40, 4)),
        ("xglm", {"d_model": 8, "num_layers": 3, "attention_heads": 4, "ffn_dim": 40}, (8, 3, 40, 4)),
        ("gemma3", {"text_config": {**NESTED, "intermediate_size": 40, "vocab_size": 60}}, (8, 3, 40, 4)),
    ],
)
def test_dimensions_by_own_names(kind: str, config: dict[str, Any], expected: tuple[int, int, int, int]) -> None:
    stated = dimensions({"model_type": kind, "vocab_size": 50, **config})
    assert (stated.hidden, stated.layers, stated.inner, stated.heads, stated.vocabulary) == (*expected, 50)


@pytest.mark.parametrize("kind", ["mistral", "gemma", "mixtral", "bert", "gpt2", "t5"])
def test_dimensions_of_a_type_alone_are_those_that_transformers_builds(kind: str) -> None:
    whole = families.transformers_config({"model_type": kind}).to_dict()
    assert dimensions({"model_type": kind}) == dimensions(whole)
    narrower = dimensions({"model_type": kind, "vocab_size": 50})
    assert narrower.heads and narrower == replace(dimensions(whole), vocabulary=50)


def test_a_mistral_by_its_name_is_a_mistral_of_7b() -> None:
    mistral = dimensions({"model_type": "mistral"})
    assert (mistral.heads, mistral.key_heads, mistral.head_size, mistral.inner) == (32, 8, 128, 14336)
    assert dimensions({"model_type": "t5"}).decoder_layers == 6
    headless = dimensions({"model_type": "unheard-of", "hidden_size": 8, "num_layers": 2, "vocab_size": 50})
    assert headless.heads == headless.head_size == 0


def test_dimensions_that_nobody_states_are_refused() -> None:
    assert dimensions({"model_type": "distilbert", "n_heads": 4}).vocabulary == 30522
    with pytest.raises(ModelError, match="`hidden_size`"):
        dimensions({"model_type": "clip", "vocab_size": 50})


def test_too_many_blocks_are_refused_before_any_is_built() -> None:
    with pytest.raises(ModelError, match="10,000 blocks"):
        meta_model("decoder", {"model_type": "mpt", "n_layers": 100_000_000})


@pytest.mark.parametrize("named", [7, "BertModel", {"a": 1}, True])
def test_architectures_that_are_no_list_are_named(named: object) -> None:
    for ask in (families.family_of, families.has_classifier, families.has_masked_lm):
        with pytest.raises(ModelError, match="architectures"):
            ask({"model_type": "unheard-of", "architectures": named})
