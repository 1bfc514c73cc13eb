"""What stock transformers can be told of a model's shape, by model type: the keys of config.json that hold it.

A type that is not listed has shapes that nobody checked here, and is refused by name before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.types import MODEL_TYPES, PER_LAYER, transformers_config

_BIASES = {"o": "attention_bias", "down": "mlp_bias"}


@dataclass(frozen=True)
class Heads:
    """The keys of the numbers of heads and of key-value heads (empty where all have their own), and of a head's size.

    Without a key for its size a head is the hidden size over the number of heads: fewer heads can then only be said block by
    block (``per_layer``). ``whole`` says that transformers wants the hidden size to be a multiple of the number of heads all the
    same; ``mixed`` that a fused matrix has each head's query, key and value side by side.
    """

    count: str = "num_attention_heads"
    groups: str = "num_key_value_heads"
    size: str = "head_dim"
    whole: bool = False
    mixed: bool = False


@dataclass(frozen=True)
class Architecture:
    """How one model type writes its shape.

    ``layers`` and ``neurons`` give a side's key (``""``: of a model with one side), ``heads`` is None where no head can go;
    ``biases`` names the switches that give an output projection (``o``, ``down``) a bias where it has none; the first
    ``pinned`` blocks of a stack differ from the others and stay.
    """

    layers: Mapping[str, str]
    neurons: Mapping[str, str] = field(default_factory=dict)
    heads: Heads | None = None
    biases: Mapping[str, str] = field(default_factory=dict)
    pinned: int = 0

    def key(self, keys: Mapping[str, str], side: str) -> str:
        """The key for a side."""
        return keys.get(side) or keys.get("", "")


def _plain(neurons: str = "intermediate_size", layers: str = "num_hidden_layers", **more: Any) -> Architecture:
    return Architecture({"": layers}, {"": neurons} if neurons else {}, **more)


def _grouped(*biases: str, whole: bool = False) -> Architecture:
    return _plain(heads=Heads(whole=whole), biases={kind: _BIASES[kind] for kind in biases})


_BART = Architecture(
    {"encoder": "encoder_layers", "decoder": "decoder_layers"},
    {"encoder": "encoder_ffn_dim", "decoder": "decoder_ffn_dim"},
)
_T5 = Architecture(
    {"encoder": "num_layers", "decoder": "num_decoder_layers"}, {"": "d_ff"}, Heads("num_heads", "", "d_kv")
)

ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(("mistral", "qwen2", "starcoder2", "nemotron", "phi3"), _grouped()),
    **dict.fromkeys(("qwen3", "gemma", "olmo"), _grouped("o")),
    **dict.fromkeys(("granite", "smollm3"), _grouped("o", "down")),
    "llama": _grouped("o", "down", whole=True),
    **dict.fromkeys(("gemma2", "gemma3_text"), _grouped("o", whole=True)),
    **dict.fromkeys(("olmo2", "stablelm"), _plain()),
    "falcon": _plain("ffn_hidden_size"),
    "gpt_neo": _plain(layers="num_layers"),
    "gpt_neox": _plain(heads=Heads(groups="", size="", mixed=True)),
    "phi": _plain(heads=Heads(size="")),
    **dict.fromkeys(("codegen", "gpt_bigcode"), _plain("n_inner", "n_layer")),
    **dict.fromkeys(("gpt2", "gptj"), _plain("n_inner", "n_layer", heads=Heads("n_head", "", ""))),
    "opt": _plain("ffn_dim", heads=Heads(groups="", size="")),
    "xglm": _plain("ffn_dim", "num_layers", heads=Heads("attention_heads", "", "")),
    "bloom": _plain("", "n_layer"),
    "mpt": _plain("", "n_layers"),
    **dict.fromkeys(
        ("bert", "camembert", "electra", "ernie", "megatron-bert", "roberta", "roberta-prelayernorm", "xlm-roberta",
         "xlm-roberta-xl"), _plain(heads=Heads(groups="", size="")),
    ),
    "mpnet": _plain(),
    "nomic_bert": _plain(heads=Heads(groups="")),
    "distilbert": _plain("hidden_dim", "n_layers", heads=Heads("n_heads", "", "")),
    "modernbert": _plain(pinned=1, heads=Heads(groups="", size="")),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    # Its attention over summaries of the text has a table of positions of its own.
    "longt5": replace(_T5, heads=None),
    **dict.fromkeys(("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "pegasus"), _BART),
}  # fmt: skip
"""By model type."""


def architecture(config: Mapping[str, Any]) -> Architecture:
    """How the model of a config.json writes its shape. Raises UnsupportedError for a type that is not declared."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(name for name in ARCHITECTURES if MODEL_TYPES.get(name) == MODEL_TYPES.get(kind)))
        raise UnsupportedError(
            f"{kind}: which of its rows and columns belong together is not declared, so nothing can be cut out of it",
            f"prune it instead, or choose one of {known or ', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[kind]


def stated(config: Mapping[str, Any], key: str) -> Any:
    """What config.json says under a key, or transformers' default for the type."""
    return config[key] if config.get(key) is not None else getattr(transformers_config(config), key, None)


def widths(config: Mapping[str, Any]) -> dict[int, dict[str, int]]:
    """By block, what ``per_layer_config`` says of it. Raises ModelError, naming block and key, for what is not known here."""
    said = config.get(PER_LAYER)
    if not said:
        return {}
    how = architecture(config)
    known = {*how.neurons.values()}
    if how.heads:
        known |= {key for key in (how.heads.count, how.heads.groups, how.heads.size or "head_dim") if key}
    found: dict[int, dict[str, int]] = {}
    for block, own in said.items() if isinstance(said, Mapping) else [("", said)]:
        where = f"config.json: `{PER_LAYER}`: `{block}`"
        if not str(block).isdigit() or not isinstance(own, Mapping):
            raise ModelError(f"{where} is no block with settings of its own", "give each block's number its settings")
        for key, value in own.items():
            if key not in known or type(value) is not int or value < 1:
                raise ModelError(
                    f"{where}: `{key}`: {str(value)[:40]}: not known here",
                    f"positive numbers of {', '.join(sorted(known))}",
                )
        found[int(block)] = dict(own)
    return found
