"""The model types that are known to load, prune and run here, and transformers' configuration of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, foreign
from sparsebench.models.safety import without_code

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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

PER_LAYER = "per_layer_config"
"""transformers' key for settings that differ from block to block."""


def transformers_config(config: Mapping[str, Any], path: str = "config.json") -> PreTrainedConfig:
    """Return transformers' configuration object of the config.json at ``path``, without the keys that name code.

    ``per_layer_config`` is left out as well: stock models of the types that have it here refuse it, and ``per_layer``
    applies it. Raises ModelError for a ``model_type`` that transformers has no class for.
    """
    from transformers import CONFIG_MAPPING

    if words := unknown_type(config, path):
        raise ModelError(*words)
    settings, _ = without_code({key: value for key, value in config.items() if key != PER_LAYER})
    # Mistral and Ministral share a name; transformers itself tells them apart in this way.
    if settings["model_type"] == "mistral" and "layer_types" in settings and "ministral" in CONFIG_MAPPING:
        settings["model_type"] = "ministral"
    kind = CONFIG_MAPPING[str(settings["model_type"])]
    with foreign(f"{path}: transformers cannot read it as a {settings['model_type']}", "fetch the file again"):
        # JSON has no infinity, so transformers stores it as an object.
        found: PreTrainedConfig = kind(**kind._decode_special_floats(settings))
    return found


def unknown_type(config: Mapping[str, Any], path: str) -> tuple[str, str] | None:
    """Return an error and its hint where transformers has no class for config.json's ``model_type``, else None."""
    from transformers import CONFIG_MAPPING

    if str(config.get("model_type")) in CONFIG_MAPPING:
        return None
    code = "; its `auto_map` names code of the model's own, which is never run" if "auto_map" in config else ""
    return (
        f"{path}: `model_type`: transformers has no model type {config.get('model_type')!r}{code}",
        "install a version of transformers that has it, or name a checkpoint converted to a type such as llama or t5",
    )
