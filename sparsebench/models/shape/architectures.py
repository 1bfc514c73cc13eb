"""The keys of config.json that set a model's shape in stock transformers, by model type.

A type that is not listed was not checked here, and is refused by name before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.families import MODEL_TYPES, PER_LAYER, dimensions, expert_count, transformers_config

_BIASES = {"o": "attention_bias", "down": "mlp_bias"}
_BOTH = ("o", "down")


@dataclass(frozen=True)
class Heads:
    """The keys of the number of heads, of key-value heads (None where each head has its own) and of a head's size.

    Without a key for it, a head's size is the hidden size over the number of heads; fewer heads can then only be stated
    block by block (``per_layer``). ``hidden_divisible``: transformers requires the hidden size to be a multiple of the
    number of heads even with such a key. ``interleaved``: a fused matrix has each head's query, key and value side by
    side. ``other_tensors`` names tensors, by a part of their path, whose rows belong to heads too.
    """

    count: str = "num_attention_heads"
    groups: str | None = "num_key_value_heads"
    size: str | None = "head_dim"
    hidden_divisible: bool = False
    interleaved: bool = False
    other_tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mixture:
    """The keys of a mixture of experts: ``neurons`` of an expert, ``count`` of experts, ``chosen`` per token.

    ``shared`` is the key of the width of the expert that all tokens use. Without one, that expert is wider than the
    others by the factor under the key ``shared_factor``. ``groups`` is the key of the number of equal groups of
    experts, and ``groups_per_token`` of the number of groups that a token's experts come from. ``interleaved``: a fused
    matrix has each neuron's gate and up side by side.
    """

    neurons: str = "intermediate_size"
    count: str = "num_local_experts"
    chosen: str = "num_experts_per_tok"
    shared: str | None = None
    shared_factor: str | None = None
    groups: str | None = None
    groups_per_token: str | None = None
    interleaved: bool = False


@dataclass(frozen=True)
class Architecture:
    """How one model type states its shape in config.json, and what can be removed from it.

    ``layers`` and ``neurons`` give each stack's key (``""``: the only stack, or all stacks); with a ``mixture``,
    ``neurons`` are those of blocks without experts. ``heads`` is None where no head can be removed, ``layers`` empty
    where no block can. ``biases`` names the switches that give an output projection (``o``, ``down``) a bias where it
    has none; ``unbiased`` are the projections to which transformers gives none, whatever config.json says. The first
    ``pinned`` blocks of a stack differ from the others and stay.
    """

    layers: Mapping[str, str]
    neurons: Mapping[str, str] = field(default_factory=dict)
    heads: Heads | None = None
    biases: Mapping[str, str] = field(default_factory=dict)
    unbiased: tuple[str, ...] = ()
    pinned: int = 0
    mixture: Mixture | None = None

    def loses(self, kind: str) -> bool:
        """Return whether ``neurons``, ``heads``, ``experts`` or ``blocks`` can be removed."""
        has = {"neurons": self.neurons, "heads": self.heads, "experts": self.mixture, "blocks": self.layers}
        return bool(has[kind])

    def alternative(self, kind: str) -> str:
        """Return the setting to suggest where nothing of a kind can be removed."""
        if self.neurons and kind != "neurons":
            return "`of: neurons`"
        return "remove whole blocks: `shrink: sleb, blocks: 2`"

    def key(self, keys: Mapping[str, str], stack: str) -> str:
        """Return the key for a stack; empty where there is none."""
        return keys.get(stack) or keys.get("", "")


def _one_stack(
    neurons: str | None = "intermediate_size", *, layers: str = "num_hidden_layers", **fields: Any
) -> Architecture:
    """Return the architecture of a model of one stack: the keys of its feed-forward width and number of blocks."""
    return Architecture({"": layers}, {"": neurons} if neurons else {}, **fields)


def _like_llama(*switches: str, heads: Heads | None = Heads(), **fields: Any) -> Architecture:
    """Return the architecture of one stack whose output projections have biases by ``switches``, and no others."""
    unbiased = tuple(kind for kind in _BOTH if kind not in switches)
    return _one_stack(heads=heads, biases={kind: _BIASES[kind] for kind in switches}, unbiased=unbiased, **fields)


_UNGROUPED = Heads(groups=None, size=None)
_QWEN_MOE = Mixture("moe_intermediate_size", "num_experts")
_SHARED_QWEN_MOE = replace(_QWEN_MOE, shared="shared_expert_intermediate_size")
_DEEPSEEK = Mixture(
    "moe_intermediate_size",
    "n_routed_experts",
    shared_factor="n_shared_experts",
    groups="n_group",
    groups_per_token="topk_group",
)
_BART = Architecture(
    {"encoder": "encoder_layers", "decoder": "decoder_layers"},
    {"encoder": "encoder_ffn_dim", "decoder": "decoder_ffn_dim"},
)
_T5 = Architecture(
    {"encoder": "num_layers", "decoder": "num_decoder_layers"},
    {"": "d_ff"},
    Heads("num_heads", groups=None, size="d_kv"),
    unbiased=_BOTH,
)

ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(("mistral", "phi3", "qwen2"), _like_llama()),
    **dict.fromkeys(("nemotron", "starcoder2"), _one_stack(heads=Heads())),
    **dict.fromkeys(("gemma", "olmo", "qwen3"), _like_llama("o")),
    **dict.fromkeys(("eurobert", "granite", "smollm3"), _like_llama("o", "down")),
    "llama": _like_llama("o", "down", heads=Heads(hidden_divisible=True)),
    **dict.fromkeys(("gemma2", "gemma3_text"), _like_llama("o", heads=Heads(hidden_divisible=True))),
    "cohere": _like_llama("o", heads=Heads(other_tensors=("q_norm", "k_norm"))),
    "olmo2": _like_llama("o", heads=None),
    "stablelm": _one_stack(unbiased=("down",)),
    "falcon": _one_stack("ffn_hidden_size"),
    "gpt_neo": _one_stack(layers="num_layers", heads=Heads("num_heads", groups=None, size=None)),
    "gpt_neox": _one_stack(heads=replace(_UNGROUPED, interleaved=True)),
    "phi": _one_stack(heads=Heads(size=None)),
    **dict.fromkeys(("codegen", "gpt_bigcode"), _one_stack("n_inner", layers="n_layer")),
    **dict.fromkeys(
        ("gpt2", "gptj"), _one_stack("n_inner", layers="n_layer", heads=Heads("n_head", groups=None, size=None))
    ),
    "opt": _one_stack("ffn_dim", heads=_UNGROUPED),
    "xglm": _one_stack("ffn_dim", layers="num_layers", heads=Heads("attention_heads", groups=None, size=None)),
    "bloom": _one_stack(None, layers="n_layer"),
    "mpt": _one_stack(None, layers="n_layers"),
    **dict.fromkeys(
        ("bert", "camembert", "electra", "ernie", "megatron-bert", "roberta", "roberta-prelayernorm", "xlm-roberta",
         "xlm-roberta-xl"), _one_stack(heads=_UNGROUPED),
    ),
    "mpnet": _one_stack(),
    "nomic_bert": _one_stack(heads=Heads(groups=None), unbiased=_BOTH),
    "distilbert": _one_stack("hidden_dim", layers="n_layers", heads=Heads("n_heads", groups=None, size=None)),
    "modernbert": _one_stack(pinned=1, heads=_UNGROUPED),
    "deberta": _one_stack(
        heads=replace(_UNGROUPED, interleaved=True, other_tensors=("q_bias", "v_bias", "pos_proj", "pos_q_proj"))
    ),
    # Its first block is followed by a convolution.
    "deberta-v2": _one_stack(
        pinned=1, heads=replace(_UNGROUPED, other_tensors=("pos_key_proj", "pos_query_proj"))
    ),
    "mixtral": _like_llama(mixture=Mixture()),
    "phimoe": _one_stack(heads=Heads(), mixture=Mixture(), unbiased=("down",)),
    "granitemoe": _like_llama("o", mixture=Mixture()),
    "olmoe": _like_llama("o", heads=None, mixture=Mixture(count="num_experts")),
    "qwen2_moe": _like_llama(mixture=_SHARED_QWEN_MOE),
    "qwen3_moe": _like_llama("o", mixture=_QWEN_MOE),
    "deepseek_v3": _like_llama("o", heads=None, mixture=_DEEPSEEK),
    "glm4_moe": _like_llama(mixture=_DEEPSEEK),
    "qwen3_next": _like_llama("o", heads=None, mixture=_SHARED_QWEN_MOE),
    "jamba": Architecture(
        {}, {"": "intermediate_size"}, mixture=Mixture(count="num_experts"), unbiased=("down",),
    ),
    "gpt_oss": _one_stack(mixture=Mixture(interleaved=True), heads=Heads(other_tensors=("sinks",))),
    "llama4_text": _like_llama("o", neurons="intermediate_size_mlp", mixture=Mixture(shared="intermediate_size")),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    "longt5": replace(_T5, heads=None),
    "switch_transformers": replace(_T5, layers={}),
    **dict.fromkeys(("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "pegasus"), _BART),
}  # fmt: skip
"""By model type."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a config.json's model. Raises UnsupportedError for an undeclared type."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        family = MODEL_TYPES.get(kind)
        declared = [name for name in sorted(ARCHITECTURES) if family in (None, MODEL_TYPES.get(name))]
        raise UnsupportedError(
            f"{kind}: nothing can be cut out of it: which of its rows and columns belong together is not declared",
            f"prune it instead, or choose one of {', '.join(declared)}",
        )
    return ARCHITECTURES[kind]


def config_value(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key in config.json, or transformers' default for the type."""
    return config[key] if config.get(key) is not None else getattr(transformers_config(config), key, None)


def is_mixture(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json's model is a mixture of experts."""
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    return expert_count(config) > 1 or bool(architecture and architecture.mixture)


def feed_forward_widths(config: Mapping[str, Any]) -> set[int]:
    """Return every number of neurons that the feed-forward parts have; empty for a type that is not declared."""
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        return set()
    hidden = dimensions(config).hidden
    dense_widths = {key: int(config_value(config, key) or 4 * hidden) for key in architecture.neurons.values()}
    block_widths = per_layer_widths(config).values()
    widths = {block[key] for block in block_widths for key in dense_widths if key in block}
    # Where every block has its own width, none has the usual one. Two stacks have no such key: building refuses them.
    layers_key = architecture.key(architecture.layers, "")
    complete = bool(block_widths and layers_key) and len(block_widths) == int(config_value(config, layers_key))
    if complete and all(dense_widths.keys() & block for block in block_widths):
        return widths
    return widths | set(dense_widths.values())


def per_layer_widths(config: Mapping[str, Any]) -> dict[int, dict[str, int]]:
    """Return each block's widths in ``per_layer_config``. Raises ModelError, naming block and key, for unknown ones."""
    settings = config.get(PER_LAYER)
    if not settings:
        return {}
    architecture = architecture_of(config)
    known_keys = {*architecture.neurons.values()}
    if heads := architecture.heads:
        known_keys |= {key for key in (heads.count, heads.groups, heads.size or "head_dim") if key}
    blocks: dict[int, dict[str, int]] = {}
    for block, sizes in settings.items() if isinstance(settings, Mapping) else [("", settings)]:
        label = f"config.json: `{PER_LAYER}`: `{block}`"
        if not str(block).isdigit() or not isinstance(sizes, Mapping):
            raise ModelError(f"{label} is no block with settings of its own", "give each block's number its settings")
        for key, value in sizes.items():
            if key not in known_keys or type(value) is not int or value < 1:
                problem = f"{label}: `{key}`: {str(value)[:40]}: not known here"
                raise ModelError(problem, f"positive numbers of {', '.join(sorted(known_keys))}")
        blocks[int(block)] = dict(sizes)
    return blocks
