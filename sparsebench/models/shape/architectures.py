"""The keys of config.json that set a model's shape in stock transformers, by model type.

A type that is not listed was not checked here, and is refused by name before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.families import MODEL_TYPES, PER_LAYER, dimensions, transformers_config
from sparsebench.models.shape.topology import NO_TEXT

_BIASES = {"o": "attention_bias", "down": "mlp_bias"}


@dataclass(frozen=True)
class Heads:
    """The keys of the number of heads, of key-value heads (empty where each head has its own) and of a head's size.

    Without a key for it, a head's size is the hidden size over the number of heads; fewer heads can then only be stated
    block by block (``per_layer``). ``whole``: transformers requires the hidden size to be a multiple of the number of
    heads even with such a key. ``mixed``: a fused matrix has each head's query, key and value side by side. ``beside``
    names other tensors, by a part of their path, whose rows belong to heads.
    """

    count: str = "num_attention_heads"
    groups: str = "num_key_value_heads"
    size: str = "head_dim"
    whole: bool = False
    mixed: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mixture:
    """The keys of a mixture of experts: ``neurons`` of an expert, ``count`` of experts, ``chosen`` per token.

    ``shared`` is the key of the width of the expert that all tokens use. Without one, that expert is
    wider than the others by the factor under the key ``times``. ``groups`` is the key of the number of equal groups of
    experts, and ``taken`` of the number of groups that a token's experts come from. ``mixed``: a fused matrix has each
    neuron's gate and up side by side.
    """

    neurons: str = "intermediate_size"
    count: str = "num_local_experts"
    chosen: str = "num_experts_per_tok"
    shared: str = ""
    times: str = ""
    groups: str = ""
    taken: str = ""
    mixed: bool = False


@dataclass(frozen=True)
class Architecture:
    """How one model type states its shape in config.json, and what can be removed from it.

    ``layers`` and ``neurons`` give each side's key (``""``: the only side, or all sides); with a ``mixture``,
    ``neurons`` are those of blocks without experts. ``heads`` is None where no head can be removed, ``layers`` empty
    where no block can. ``biases`` names the switches that give an output projection (``o``, ``down``) a bias where it
    has none. The first ``pinned`` blocks of a stack differ from the others and stay. ``why`` says, for ``heads``,
    ``neurons``, ``experts`` or ``blocks``, why none can be removed.
    """

    layers: Mapping[str, str]
    neurons: Mapping[str, str] = field(default_factory=dict)
    heads: Heads | None = None
    biases: Mapping[str, str] = field(default_factory=dict)
    pinned: int = 0
    mixture: Mixture | None = None
    why: Mapping[str, str] = field(default_factory=dict)

    def cannot(self, kind: str) -> str:
        """Return why no ``neurons``, ``heads``, ``experts`` or ``blocks`` can be removed; empty where they can."""
        has = {"neurons": self.neurons, "heads": self.heads, "experts": self.mixture, "blocks": self.layers}
        return "" if has[kind] else self.why.get(kind, _CANNOT[kind])

    def instead(self, kind: str) -> str:
        """Return the setting to suggest where nothing of a kind can be removed."""
        can = self.neurons and kind != "neurons"
        return "`of: neurons`" if can else "remove whole blocks: `shrink: sleb, blocks: 2`"

    def key(self, keys: Mapping[str, str], side: str) -> str:
        """Return the key for a side; empty where there is none."""
        return keys.get(side) or keys.get("", "")


_HEADS = Heads()


_CANNOT = {
    "neurons": "its feed-forward width follows from its hidden size, so that no neuron can go",
    "heads": "how its heads lie in its tensors is not declared, so that no head can go",
    "experts": "it is no mixture of experts",
    "blocks": "which kind a block is follows from its number, so that no block can go",
}


def _plain(neurons: str = "intermediate_size", layers: str = "num_hidden_layers", **more: Any) -> Architecture:
    return Architecture({"": layers}, {"": neurons} if neurons else {}, **more)


def _grouped(*biases: str, whole: bool = False) -> Architecture:
    return _plain(heads=Heads(whole=whole), biases={kind: _BIASES[kind] for kind in biases})


def _experts(
    mixture: Mixture, *biases: str, neurons: str = "intermediate_size", heads: Heads | None = _HEADS
) -> Architecture:
    return _plain(neurons, heads=heads, biases={kind: _BIASES[kind] for kind in biases}, mixture=mixture)


def _no_heads(why: str) -> dict[str, str]:
    return {"heads": f"{why}, so that no head can go"}


_NORMS = _no_heads("its norms of queries and keys span all heads")
_SLOPES = _no_heads("the slopes of its position biases follow from the number of its heads")
_ONE_GROUP = "all of its heads share one key and one value"
_QWEN_MOE = Mixture("moe_intermediate_size", "num_experts")
_DEEPSEEK = Mixture(
    "moe_intermediate_size", "n_routed_experts", times="n_shared_experts", groups="n_group", taken="topk_group"
)
_BART = Architecture(
    {"encoder": "encoder_layers", "decoder": "decoder_layers"},
    {"encoder": "encoder_ffn_dim", "decoder": "decoder_ffn_dim"},
    why=_no_heads("its config.json has no key for the size of a head, nor one for single blocks of two stacks"),
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
    "olmo2": _plain(why=_NORMS),
    "stablelm": _plain(why=_no_heads("each of its heads may have norms of its own")),
    "falcon": _plain("ffn_hidden_size", why=_no_heads(f"{_ONE_GROUP}, or lie group by group in one fused matrix")),
    "gpt_neo": _plain(layers="num_layers", heads=Heads("num_heads", "", "")),
    "gpt_neox": _plain(heads=Heads(groups="", size="", mixed=True)),
    "phi": _plain(heads=Heads(size="")),
    "codegen": _plain("n_inner", "n_layer", why=_no_heads("its fused matrix has queries, values and keys in four parts")),
    "gpt_bigcode": _plain("n_inner", "n_layer", why=_no_heads(_ONE_GROUP)),
    **dict.fromkeys(("gpt2", "gptj"), _plain("n_inner", "n_layer", heads=Heads("n_head", "", ""))),
    "opt": _plain("ffn_dim", heads=Heads(groups="", size="")),
    "xglm": _plain("ffn_dim", "num_layers", heads=Heads("attention_heads", "", "")),
    "bloom": _plain("", "n_layer", why=_SLOPES),
    "mpt": _plain("", "n_layers", why=_SLOPES),
    **dict.fromkeys(
        ("bert", "camembert", "electra", "ernie", "megatron-bert", "roberta", "roberta-prelayernorm", "xlm-roberta",
         "xlm-roberta-xl"), _plain(heads=Heads(groups="", size="")),
    ),
    "mpnet": _plain(why=_no_heads("its heads share a table of positions outside the blocks")),
    "nomic_bert": _plain(heads=Heads(groups="")),
    "distilbert": _plain("hidden_dim", "n_layers", heads=Heads("n_heads", "", "")),
    "modernbert": _plain(pinned=1, heads=Heads(groups="", size="")),
    "deberta": _plain(heads=Heads(groups="", size="", mixed=True, beside=("q_bias", "v_bias", "pos_proj", "pos_q_proj"))),
    # Its first block is followed by a convolution.
    "deberta-v2": _plain(pinned=1, heads=Heads(groups="", size="", beside=("pos_key_proj", "pos_query_proj"))),
    **dict.fromkeys(("mixtral", "phimoe"), _experts(Mixture())),
    "granitemoe": _experts(Mixture(), "o"),
    "olmoe": replace(_experts(Mixture(count="num_experts"), heads=None), why=_NORMS),
    "qwen2_moe": _experts(replace(_QWEN_MOE, shared="shared_expert_intermediate_size")),
    "qwen3_moe": _experts(_QWEN_MOE, "o"),
    "deepseek_v3": replace(
        _experts(_DEEPSEEK, heads=None), why=_no_heads("its heads are read out of one compressed state")
    ),
    "glm4_moe": _experts(_DEEPSEEK),
    "qwen3_next": replace(
        _experts(replace(_QWEN_MOE, shared="shared_expert_intermediate_size"), heads=None),
        why=_no_heads("three of four blocks have linear attention in place of heads"),
    ),
    "jamba": Architecture(
        {}, {"": "intermediate_size"}, mixture=Mixture(count="num_experts"),
        why=_no_heads("most of its blocks have a state-space layer in place of heads"),
    ),
    "gpt_oss": _experts(Mixture(mixed=True), heads=Heads(beside=("sinks",))),
    "llama4_text": _experts(Mixture(shared="intermediate_size"), "o", neurons="intermediate_size_mlp"),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    "longt5": replace(
        _T5, heads=None, why=_no_heads("its attention over summaries of the text has a table of positions of its own")
    ),
    "switch_transformers": replace(
        _T5, layers={}, why={"experts": "each of its experts takes a share of the tokens that changes with their number"}
    ),
    "cohere": _plain(heads=Heads(beside=("q_norm", "k_norm")), biases={"o": "attention_bias"}),
    "eurobert": _grouped("o", "down"),
    **dict.fromkeys(("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "pegasus"), _BART),
}  # fmt: skip
"""By model type."""


UNBIASED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("cohere", "deepseek_v3", "gemma", "gemma2", "gemma3_text", "granitemoe", "jamba", "llama4_text", "olmo",
         "olmo2", "olmoe", "phimoe", "qwen3", "qwen3_moe", "qwen3_next", "stablelm"), ("down",),
    ),
    **dict.fromkeys(
        ("glm4_moe", "longt5", "mistral", "mixtral", "mt5", "nomic_bert", "phi3", "qwen2", "qwen2_moe",
         "switch_transformers", "t5", "umt5"), ("o", "down"),
    ),
}  # fmt: skip
"""By model type, the output projections to which transformers gives no bias, whatever config.json says."""


_STATES = "its blocks are state-space layers, whose channels run through convolutions and states that no key counts"
_WINDOWS = (
    "its local attention has a window of its own in each block, and a second set of projections for global attention"
)
_UNDECLARED = {
    "albert": "all of its blocks are one, so that what goes from one goes from all",
    "whisper": NO_TEXT["whisper"],
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv"), _STATES),
    **dict.fromkeys(("led", "longformer"), _WINDOWS),
    "lfm2": "its feed-forward width follows from its hidden size by a rule of its own, and most of its blocks are convolutions",
    "t5gemma": "its config.json has a configuration in it for each stack",
}
"""Why a well-known model type is not declared."""


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a config.json's model. Raises UnsupportedError, saying why, for an undeclared type."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        family = MODEL_TYPES.get(kind)
        known = ", ".join(sorted(name for name in ARCHITECTURES if family and MODEL_TYPES.get(name) == family))
        why = _UNDECLARED.get(kind, "which of its rows and columns belong together is not declared")
        raise UnsupportedError(
            f"{kind}: nothing can be cut out of it: {why}",
            f"prune it instead, or choose one of {known or ', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[kind]


def stated(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key in config.json, or transformers' default for the type."""
    return config[key] if config.get(key) is not None else getattr(transformers_config(config), key, None)


def is_mixture(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json's model is a mixture of experts."""
    how = ARCHITECTURES.get(str(config.get("model_type")))
    return dimensions(config).experts > 1 or bool(how and how.mixture)


def neurons(config: Mapping[str, Any]) -> set[int]:
    """Return every number of neurons that the feed-forward parts have; empty for a type that is not declared."""
    how = ARCHITECTURES.get(str(config.get("model_type")))
    if how is None:
        return set()
    usual = {key: int(stated(config, key) or 4 * dimensions(config).hidden) for key in how.neurons.values()}
    blocks = widths(config).values()
    numbers = {block[key] for block in blocks for key in usual if key in block}
    # Only models of one stack have widths by block. Where every block has its own, none has the usual one.
    each_its_own = bool(blocks) and len(blocks) == int(stated(config, how.layers[""]))
    if each_its_own and all(usual.keys() & block for block in blocks):
        return numbers
    return numbers | set(usual.values())


def widths(config: Mapping[str, Any]) -> dict[int, dict[str, int]]:
    """Return each block's widths in ``per_layer_config``. Raises ModelError, naming block and key, for unknown ones."""
    settings = config.get(PER_LAYER)
    if not settings:
        return {}
    how = architecture(config)
    known = {*how.neurons.values()}
    if how.heads:
        known |= {key for key in (how.heads.count, how.heads.groups, how.heads.size or "head_dim") if key}
    blocks: dict[int, dict[str, int]] = {}
    for block, sizes in settings.items() if isinstance(settings, Mapping) else [("", settings)]:
        where = f"config.json: `{PER_LAYER}`: `{block}`"
        if not str(block).isdigit() or not isinstance(sizes, Mapping):
            raise ModelError(f"{where} is no block with settings of its own", "give each block's number its settings")
        for key, value in sizes.items():
            if key not in known or type(value) is not int or value < 1:
                raise ModelError(
                    f"{where}: `{key}`: {str(value)[:40]}: not known here",
                    f"positive numbers of {', '.join(sorted(known))}",
                )
        blocks[int(block)] = dict(sizes)
    return blocks
