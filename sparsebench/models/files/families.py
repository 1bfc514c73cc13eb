"""What a config.json says of a model: its type, its family, transformers' class for it, and its dimensions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, Refusal, library_errors
from sparsebench.manifest.names import Family
from sparsebench.models.files.safety import without_code

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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

PER_LAYER = "per_layer_config"
"""transformers' key for settings that differ from block to block."""

_CLASSIFIER, _TAGGER, _MASKED_LM = "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"
_ENCODER_HEADS = (_MASKED_LM, _CLASSIFIER, _TAGGER, "ForQuestionAnswering")


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the checkpoint's family by its config.json; None when neither its type nor its architecture tells."""
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    family = MODEL_TYPES.get(str(config.get("model_type")))
    if config.get("use_bidirectional_attention") is True:  # a decoder's type, trained on to be a sentence encoder
        return "encoder"
    # BERT and its kin can be configured as decoders (`is_decoder`), with a causal head.
    if family and not (family == "encoder" and config.get("is_decoder")):
        return family
    architectures = _architectures(config)
    if config.get("is_decoder") or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "decoder"
    return "encoder" if any(name.endswith(_ENCODER_HEADS) for name in architectures) else None


def has_classifier(config: Mapping[str, Any]) -> bool:
    """Return whether the checkpoint has a sequence-classification head (an NLI fine-tune, for one)."""
    return any(name.endswith(_CLASSIFIER) for name in _architectures(config))


def output_family(family: Family, config: Mapping[str, Any]) -> Family:
    """Return ``encoder`` for a model with a sequence-classification head, else its family.

    Such a model has states and class scores as outputs, as an encoder has, and predicts no tokens.
    """
    return "encoder" if has_classifier(config) else family


def has_tagger(config: Mapping[str, Any]) -> bool:
    """Return whether the checkpoint has a token-classification head, which tags words."""
    return any(name.endswith(_TAGGER) for name in _architectures(config))


def has_masked_lm(config: Mapping[str, Any]) -> bool:
    """Return whether config.json names a masked-language-model head (the weights may still lack it)."""
    # ELECTRA's ForPreTraining is a discriminator of replaced tokens; its generator has the head.
    heads = (_MASKED_LM,) if config.get("model_type") == "electra" else (_MASKED_LM, "ForPreTraining")
    return any(name.endswith(heads) for name in _architectures(config))


def _architectures(config: Mapping[str, Any]) -> list[str]:
    """Return the classes that a config.json names. Raises ModelError where ``architectures`` is not a list."""
    names = config.get("architectures") or []
    if not isinstance(names, list | tuple):
        problem = f"config.json: `architectures` is {str(names)[:40]!r}, not a list of names"
        raise ModelError(problem, "correct it, or fetch it again")
    return [str(name) for name in names]


def auto_class(family: Family, config: Mapping[str, Any]) -> Any:
    """Return transformers' auto class for the family, or for a sequence-classification head where the model has one.

    Raises ModelError for an unknown family.
    """
    import transformers

    if has_classifier(config):
        return transformers.AutoModelForSequenceClassification
    if family == "decoder":
        return transformers.AutoModelForCausalLM
    if family == "encoder-decoder":
        speech = config.get("model_type") == "whisper"
        return transformers.AutoModelForSpeechSeq2Seq if speech else transformers.AutoModelForSeq2SeqLM
    if family == "encoder":
        return transformers.AutoModel
    raise ModelError(f"there is no family {family!r}", "a family is encoder, decoder or encoder-decoder")


def transformers_config(config: Mapping[str, Any], path: str = "config.json") -> PreTrainedConfig:
    """Return transformers' configuration object of the config.json at ``path``, without the keys that name code.

    ``per_layer_config`` is left out as well: stock models of the types that have it here refuse it, and ``per_layer``
    applies it. Raises ModelError for a ``model_type`` that transformers has no class for.
    """
    from transformers import CONFIG_MAPPING

    if refusal := unknown_type(config, path):
        raise ModelError(refusal.reason, refusal.way_out)
    settings, _ = without_code({key: value for key, value in config.items() if key != PER_LAYER})
    # Mistral and Ministral share a name; transformers itself tells them apart in this way.
    if settings["model_type"] == "mistral" and "layer_types" in settings and "ministral" in CONFIG_MAPPING:
        settings["model_type"] = "ministral"
    kind = CONFIG_MAPPING[str(settings["model_type"])]
    with library_errors(f"{path}: transformers cannot read it as a {settings['model_type']}", "fetch the file again"):
        # JSON has no infinity, so transformers stores it as an object.
        read: PreTrainedConfig = kind(**kind._decode_special_floats(settings))
    return read


def unknown_type(config: Mapping[str, Any], path: str) -> Refusal | None:
    """Return why transformers has no class for config.json's ``model_type``; None where it has one."""
    from transformers import CONFIG_MAPPING

    if str(config.get("model_type")) in CONFIG_MAPPING:
        return None
    code = "; its `auto_map` names code of the model's own, which is never run" if "auto_map" in config else ""
    return Refusal(
        f"{path}: `model_type`: transformers has no model type {config.get('model_type')!r}{code}",
        "install a version of transformers that has it, or name a checkpoint converted to a type such as llama or t5",
    )


def cache_name(model: Any) -> str:
    """Return the name of the argument for the key-value cache of a model's forward; transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


VOCABULARY, NESTED = "vocab_size", "text_config"
"""The keys of the vocabulary's size, and of the language model's configuration in that of a multimodal model."""
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
DECODER_LAYERS = ("num_decoder_layers", "decoder_layers")
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim")
_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads", "encoder_attention_heads")
_INNER = ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "n_inner", "ffn_hidden_size", "hidden_dim")
"""The names of a dimension in the configurations of different model types."""


@dataclass(frozen=True)
class Dimensions:
    """A transformer's dimensions.

    ``layers`` counts the blocks of the first stack, ``decoder_layers`` those of an encoder-decoder's second (else 0).
    ``hidden`` is a token's width between blocks, ``inner`` in the feed-forward part. Each of the ``heads`` is
    ``head_size`` wide; ``key_heads`` is the number of key-value heads; all three are 0 where no heads are stated.
    ``experts`` is 1 where there are none.
    """

    hidden: int
    layers: int
    decoder_layers: int
    inner: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    experts: int = 1


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Return the dimensions that the config states, or that transformers takes for its model type where it does not.

    Others follow from these, such as a feed-forward part of four times the width, where the width, the blocks, the heads
    and the tokens are all stated. Raises ModelError where neither says how wide the model is, or how many blocks or
    tokens it has.
    """
    config = _with_defaults({**text_config(config), **config})  # multimodal models nest the language model's
    hidden = _required_number(config, _HIDDEN)
    layers = _required_number(config, LAYERS)
    heads = _first_number(config, _HEADS, 0)
    encoder_decoder = config.get(
        "is_encoder_decoder", MODEL_TYPES.get(str(config.get("model_type"))) == "encoder-decoder"
    )
    return Dimensions(
        hidden=hidden,
        layers=layers,
        decoder_layers=_first_number(config, DECODER_LAYERS, layers) if encoder_decoder else 0,
        inner=_first_number(config, ("moe_intermediate_size",), 0) or _first_number(config, _INNER, 4 * hidden),
        heads=heads,
        key_heads=_first_number(config, ("num_key_value_heads",), heads),
        head_size=_first_number(config, ("head_dim", "d_kv"), hidden // max(1, heads)) if heads else 0,
        vocabulary=_required_number(config, (VOCABULARY,)),
        experts=expert_count(config),
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config.json that describes the language model: multimodal ones nest it."""
    nested = config.get(NESTED)
    return nested if isinstance(nested, Mapping) else config


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return the number of rows of the embeddings; None where config.json does not state it."""
    size = config.get(VOCABULARY) or text_config(config).get(VOCABULARY)
    return size if isinstance(size, int) else None


def expert_count(config: Mapping[str, Any]) -> int:
    """Return the experts of a block of the config's model, 1 where it is no mixture."""
    return max(1, _first_number(config, ("num_local_experts", "num_experts", "n_routed_experts"), 1))


def _first_number(config: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), default)


def _required_number(config: Mapping[str, Any], names: Sequence[str]) -> int:
    if not _states_one(config, names):
        raise ModelError(f"config.json: no `{names[0]}`", "add it, or fetch the file again")
    return _first_number(config, names, 0)


def _states_one(config: Mapping[str, Any], names: Sequence[str]) -> bool:
    return any(isinstance(config.get(name), int) for name in names)


def _with_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config that states a width and counts, else one with transformers' values for all that it leaves out.

    A type that transformers lacks may have no heads.
    """
    lacking = [names for names in (_HIDDEN, LAYERS, _HEADS, (VOCABULARY,)) if not _states_one(config, names)]
    if not lacking or (lacking == [_HEADS] and unknown_type(config, "config.json")):
        return config
    stated = {key: value for key, value in config.items() if value is not None}
    return {**transformers_config(config).to_dict(), **stated}
