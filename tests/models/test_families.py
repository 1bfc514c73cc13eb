"""A checkpoint's own family, from its config.json."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebench.errors import ModelError
from sparsebench.models import families
from sparsebench.models.families import MODEL_TYPES, auto_class, family_of, has_classifier
from tests.models.model_zoo import small


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_known_types(model_type: str) -> None:
    assert family_of({"model_type": model_type}) == MODEL_TYPES[model_type]
    assert family_of(small(model_type)) == MODEL_TYPES[model_type]


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
        ({}, None),
    ],
)
def test_unknown_types_by_architecture(config: dict[str, Any], family: str | None) -> None:
    assert family_of(config) == family


def test_the_auto_class_fits_family_and_head() -> None:
    nli = {"architectures": ["RobertaForSequenceClassification"]}
    assert has_classifier(nli) and not has_classifier({"architectures": ["BertModel"]}) and not has_classifier({})
    assert auto_class("encoder", nli).__name__ == "AutoModelForSequenceClassification"
    assert auto_class("encoder", nli, head=False).__name__ == auto_class("encoder", {}).__name__ == "AutoModel"
    assert auto_class("decoder", {}).__name__ == "AutoModelForCausalLM"
    assert auto_class("encoder-decoder", {}).__name__ == "AutoModelForSeq2SeqLM"
    assert auto_class("encoder-decoder", {"model_type": "whisper"}).__name__ == "AutoModelForSpeechSeq2Seq"
    with pytest.raises(ModelError, match="no family 'coder'"):
        auto_class("coder", {})  # type: ignore[arg-type]


@pytest.mark.parametrize("named", [7, "BertModel", {"a": 1}, True])
def test_architectures_that_are_no_list_are_named(named: object) -> None:
    for ask in (families.family_of, families.has_classifier, families.has_masked_lm):
        with pytest.raises(ModelError, match="architectures"):
            ask({"model_type": "unheard-of", "architectures": named})
