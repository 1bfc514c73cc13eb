"""Which family a checkpoint belongs to, and the stock transformers class that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, foreign
from sparsebench.models.dimensions import dimensions
from sparsebench.models.safety import without_code

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from sparsebench.manifest.schema import Family

_TYPES: dict[Family, str] = {
    "decoder": (
        "bloom codegen deepseek_v3 falcon gemma gemma2 gemma3_text glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj "
        "granite granitemoe llama llama4_text mistral mixtral mpt nemotron olmo olmo2 olmoe opt phi phi3 phimoe qwen2 "
        "qwen2_moe qwen3 qwen3_moe smollm3 stablelm starcoder2 xglm"
    ),
    "encoder": (
        "albert bert camembert deberta deberta-v2 distilbert electra ernie megatron-bert modernbert mpnet nomic_bert "
        "roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl"
    ),
    "encoder-decoder": "bart blenderbot blenderbot-small longt5 m2m_100 marian mbart mt5 pegasus t5 umt5 whisper",
}

MODEL_TYPES: dict[str, Family] = {name: family for family, names in _TYPES.items() for name in names.split()}
"""Family of each transformers ``model_type`` that is known to load, prune and run here."""

_ENCODER_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
CLASSIFIER = "ForSequenceClassification"
_MASKED_LM = ("ForMaskedLM", "ForPreTraining")

LAYERS = 10_000
"""Blocks of a model: each is built before anything else is known."""


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The checkpoint's own family by its config.json; None when neither its type nor its architecture tells."""
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    known = MODEL_TYPES.get(str(config.get("model_type")))
    # BERT and its kin can be configured as decoders (`is_decoder`), with a causal head.
    if known and not (known == "encoder" and config.get("is_decoder")):
        return known
    architectures = [str(name) for name in config.get("architectures") or []]
    if config.get("is_decoder") or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "decoder"
    return "encoder" if any(name.endswith(_ENCODER_HEADS) for name in architectures) else None


def has_classifier(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint carries a sequence-classification head (an NLI fine-tune, for one)."""
    return any(str(name).endswith(CLASSIFIER) for name in config.get("architectures") or [])


def has_masked_lm(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint says that it carries a masked-language-model head (its weights may still lack it)."""
    # What ELECTRA was pretrained as tells replaced tokens from others; its generator has the head.
    pretrained = config.get("model_type") != "electra"
    names = [str(name) for name in config.get("architectures") or []]
    return any(name.endswith(_MASKED_LM if pretrained else _MASKED_LM[:1]) for name in names)


def auto_class(family: Family, config: Mapping[str, Any], head: bool = True) -> Any:
    """transformers' auto class for the family; for an encoder with ``head``, its classifier where it has one."""
    import transformers

    if family == "decoder":
        return transformers.AutoModelForCausalLM
    if family == "encoder-decoder":
        speech = config.get("model_type") == "whisper"
        return transformers.AutoModelForSpeechSeq2Seq if speech else transformers.AutoModelForSeq2SeqLM
    if family == "encoder":
        classify = head and has_classifier(config)
        return transformers.AutoModelForSequenceClassification if classify else transformers.AutoModel
    raise ModelError(f"there is no family {family!r}", "a family is encoder, decoder or encoder-decoder")


def meta_model(family: Family, config: Mapping[str, Any], head: bool = True, kind: Any = None) -> PreTrainedModel:
    """The model without storage: true names, shapes and ties, on torch's meta device; of another auto class with ``kind``.

    Raises ModelError when transformers does not know the architecture, or its auto class does not fit the family.
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
        made = (kind or auto_class(family, config, head)).from_config(settings, trust_remote_code=False)
    model: PreTrainedModel = made
    return model


def transformers_config(config: Mapping[str, Any], path: str = "config.json") -> PreTrainedConfig:
    """transformers' configuration object of the config.json at ``path``, without the keys that name code.

    Raises ModelError for a ``model_type`` that transformers has no class for.
    """
    from transformers import CONFIG_MAPPING

    if words := unknown_type(config, path):
        raise ModelError(*words)
    settings, _ = without_code(dict(config))
    # As transformers itself tells the two apart, which share a name.
    if settings["model_type"] == "mistral" and "layer_types" in settings and "ministral" in CONFIG_MAPPING:
        settings["model_type"] = "ministral"
    kind = CONFIG_MAPPING[str(settings["model_type"])]
    with foreign(f"{path}: transformers cannot read it as a {settings['model_type']}", "fetch the file again"):
        # Infinity, which JSON does not have, is stored as an object.
        found: PreTrainedConfig = kind(**kind._decode_special_floats(settings))
    return found


def unknown_type(config: Mapping[str, Any], path: str) -> tuple[str, str] | None:
    """What is wrong, and the way out, where transformers has no class for the type that config.json at ``path`` states."""
    from transformers import CONFIG_MAPPING

    if str(config.get("model_type")) in CONFIG_MAPPING:
        return None
    code = "; its `auto_map` names code of the model's own, which is never run" if "auto_map" in config else ""
    return (
        f"{path}: `model_type`: transformers has no model type {config.get('model_type')!r}{code}",
        "install a version of transformers that has it, or name a checkpoint converted to a type such as llama or t5",
    )
