"""The family that a checkpoint belongs to, and the stock transformers class that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, foreign
from sparsebench.models.dimensions import dimensions
from sparsebench.models.types import MODEL_TYPES as MODEL_TYPES
from sparsebench.models.types import PER_LAYER
from sparsebench.models.types import transformers_config as transformers_config
from sparsebench.models.types import unknown_type as unknown_type

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparsebench.manifest.schema import Family

_ENCODER_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
CLASSIFIER = "ForSequenceClassification"
_MASKED_LM = ("ForMaskedLM", "ForPreTraining")

LAYERS = 10_000
"""The most blocks of a model: all are built before anything else is checked."""


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the checkpoint's family by its config.json; None when neither its type nor its architecture tells."""
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    known = MODEL_TYPES.get(str(config.get("model_type")))
    # BERT and its kin can be configured as decoders (`is_decoder`), with a causal head.
    if known and not (known == "encoder" and config.get("is_decoder")):
        return known
    architectures = _architectures(config)
    if config.get("is_decoder") or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "decoder"
    return "encoder" if any(name.endswith(_ENCODER_HEADS) for name in architectures) else None


def has_classifier(config: Mapping[str, Any]) -> bool:
    """Return whether the checkpoint has a sequence-classification head (an NLI fine-tune, for one)."""
    return any(name.endswith(CLASSIFIER) for name in _architectures(config))


def has_tagger(config: Mapping[str, Any]) -> bool:
    """Return whether the checkpoint has a token-classification head, which tags words."""
    return any(name.endswith("ForTokenClassification") for name in _architectures(config))


def has_masked_lm(config: Mapping[str, Any]) -> bool:
    """Return whether config.json names a masked-language-model head (the weights may still lack it)."""
    # ELECTRA's ForPreTraining is a discriminator of replaced tokens; its generator has the head.
    pretrained = config.get("model_type") != "electra"
    return any(name.endswith(_MASKED_LM if pretrained else _MASKED_LM[:1]) for name in _architectures(config))


def _architectures(config: Mapping[str, Any]) -> list[str]:
    """Return the classes that a config.json names. Raises ModelError where ``architectures`` is not a list."""
    named = config.get("architectures") or []
    if not isinstance(named, list | tuple):
        raise ModelError(
            f"config.json: `architectures` is {str(named)[:40]!r}, not a list of names", "correct it, or fetch it again"
        )
    return [str(name) for name in named]


def auto_class(family: Family, config: Mapping[str, Any]) -> Any:
    """Return transformers' auto class for the family, for an encoder its classifier where it has one.

    Raises ModelError for an unknown family.
    """
    import transformers

    if family == "decoder":
        return transformers.AutoModelForCausalLM
    if family == "encoder-decoder":
        speech = config.get("model_type") == "whisper"
        return transformers.AutoModelForSpeechSeq2Seq if speech else transformers.AutoModelForSeq2SeqLM
    if family == "encoder":
        classify = has_classifier(config)
        return transformers.AutoModelForSequenceClassification if classify else transformers.AutoModel
    raise ModelError(f"there is no family {family!r}", "a family is encoder, decoder or encoder-decoder")


def meta_model(family: Family, config: Mapping[str, Any], kind: Any = None) -> PreTrainedModel:
    """Build the model without storage, on torch's meta device, with its true names, shapes and ties.

    ``kind`` is an auto class to use instead of the family's. Blocks get their widths in ``per_layer_config``
    (``per_layer``). Raises ModelError when transformers does not know the architecture, or its auto class does not fit
    the family.
    """
    import torch

    settings = transformers_config(config)
    size = dimensions(config)
    if max(size.layers, size.decoder_layers) > LAYERS:
        raise ModelError(
            f"config.json: more than {LAYERS:,} blocks", "correct the architecture, or fetch the file again"
        )
    what = f"transformers cannot build model type {config.get('model_type')!r} as {family}"
    with foreign(what, "correct the family or the architecture"), torch.device("meta"):
        made = (kind or auto_class(family, config)).from_config(settings, trust_remote_code=False)
    model: PreTrainedModel = made
    if config.get(PER_LAYER):
        from sparsebench.models.per_layer import reshape

        reshape(model, config, family)
    return model


def drop_pooler(model: Any, missing: set[str], kind: Any) -> set[str]:
    """Remove an encoder's pooler from the model if its weights are ``missing``, and return what else is missing.

    ``kind`` is the auto class that made the model. Hidden states do not depend on a pooler; without it no made-up number
    can leave the model.
    """
    poolers = {name for name in missing if "pooler" in name.split(".")}
    if not poolers or kind.__name__ != "AutoModel":
        return missing
    model.pooler = None
    return missing - poolers
