"""The hidden channels: one axis through the whole model, in every tensor that reads or writes a token's hidden states.

transformers shows which dimensions are channels: the model is built without storage, once as it is and once with a
larger hidden size; the dimensions that differ are channels. A head's size would follow from the hidden size, so it is
written into config.json; a type without a key for it is refused.

Norms divide by the width. A model without a channel therefore equals the model with zeros in it only if the latter's
norms count just the remaining channels. Other factors that depend on the width are corrected in the weights
(``factors``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.architectures import architecture, stated
from sparsebench.models.axes import Axis, Cut, ModelShape
from sparsebench.models.topology import is_buffer
from sparsebench.models.types import transformers_config

HEAD_SIZE = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "nemotron", "nomic_bert", "olmo", "olmo2",
         "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"), "head_dim",
    ),
    **dict.fromkeys(("longt5", "mt5", "t5", "umt5"), "d_kv"),
}  # fmt: skip
"""The key of a head's size, by model type."""
ROOT = frozenset({"gemma", "gemma2", "gemma3_text"})
"""Types that multiply embeddings by the square root of the hidden size."""
ONE_MORE = frozenset({*ROOT, "nemotron"})
"""Types whose norms multiply by one plus their weights."""
_POOLED = ("word_embedding_dimension", "embedding_dimension")
"""What sentence-transformers calls the hidden size beside its pooling."""
_READ = ("q", "k", "v", "qkv", "gate", "up", "gate_up")
"""The kinds of matrices that read states; o and down write them."""


def refuse(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a model type whose hidden size cannot be cut."""
    kind = str(config.get("model_type"))
    how = architecture(config)
    if kind not in HEAD_SIZE:
        why = (
            "it is not declared as a type that can lose some"
            if how.mixture or (how.heads and how.heads.size)
            else "its head size is hidden size / heads, and its config.json cannot state another one"
        )
        raise UnsupportedError(
            f"{kind}: channels cannot be removed: {why}",
            "`of: neurons`, or whole blocks: `shrink: sleb, blocks: 2`",
        )


def words(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return config.json's entries for a hidden size of ``width``, and for sizes that would change with it."""
    whole = transformers_config(config)
    size = HEAD_SIZE[str(config["model_type"])]
    followed = {size: stated(config, size) or whole.hidden_size // whole.num_attention_heads}
    followed |= {key: stated(config, key) for key in architecture(config).neurons.values()}
    own = {key: value for key, value in followed.items() if config.get(key) is None}
    return {type(whole).attribute_map.get("hidden_size", "hidden_size"): width, **own}


def write_pooling(folder: Path, width: int) -> None:
    """Write the hidden size ``width`` into the sentence-transformers configurations of a folder that state it."""
    for path in folder.glob("*/config.json"):
        said = bounded.read_object(path)
        if changed := {key: width for key in _POOLED if key in said}:
            path.write_text(json.dumps({**said, **changed}, indent=2))


def multiple(shape: ModelShape) -> int:
    """Return the number that transformers requires the hidden size to be a multiple of."""
    heads = shape.how.heads
    return int(stated(shape.checkpoint.config, heads.count)) if heads and heads.whole else 1


def channels(shape: ModelShape, family: Any) -> Axis:
    """Return the axis of the hidden channels; its ``outputs`` are cuts in the blocks' matrices that read them.

    Raises UnsupportedError for a type that cannot lose a channel and for a tensor that transformers does not build, ModelError
    for one whose size is not the one in config.json.
    """
    checkpoint, places = shape.checkpoint, shape.places
    refuse(checkpoint.config)
    settings = transformers_config(checkpoint.config)
    hidden = int(settings.hidden_size)
    found: dict[str, tuple[int, ...]] = {}
    for kind in _classes(family, checkpoint.config):
        found |= _differing(shape, family, hidden, hidden + int(settings.num_attention_heads), kind)
    found |= {again: found[first] for again, first in checkpoint.ties.items() if first in found}
    for name, info in checkpoint.tensors.items():
        if name not in found and not is_buffer(info, places[name]):
            raise UnsupportedError(
                f"{name}: transformers builds no tensor of this name, so which of its entries are channels is not known",
                "save the checkpoint with transformers again",
            )
    cuts, reading = [], []
    for name, dims in found.items():
        own = [Cut(name, dim, 0, 1) for dim in dims]
        if any(checkpoint.tensors[name].shape[cut.dim] != hidden for cut in own):
            raise ModelError(
                f"{name}: {checkpoint.tensors[name].shape} where config.json says a hidden size of {hidden}",
                "correct config.json",
            )
        place = places[name]
        if place.prunable:
            inward = 0 if place.rows_last else 1
            reads = place.kind.removeprefix("cross_") in _READ
            if dims != (inward if reads else 1 - inward,):
                raise UnsupportedError(f"{name}: its heads or neurons follow from the hidden size", "`of: neurons`")
            reading += own if reads else []
        cuts += own
    return Axis("hidden", "", (), hidden, tuple(cuts), tuple(reading))


def _classes(family: Any, config: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the auto classes whose models have the checkpoint's tensors; None stands for its family's class."""
    import transformers

    from sparsebench.models.families import has_masked_lm, has_tagger

    yield None
    if family == "encoder" and has_masked_lm(config):
        yield transformers.AutoModelForMaskedLM
    if family == "encoder" and has_tagger(config):
        yield transformers.AutoModelForTokenClassification


def _differing(shape: ModelShape, family: Any, hidden: int, more: int, kind: Any) -> dict[str, tuple[int, ...]]:
    """Return for each stored tensor the dimensions that grow when the hidden size grows from ``hidden`` to ``more``."""
    from sparsebench.models.families import meta_model
    from sparsebench.models.filling import named_tensors, stored_views

    config = shape.checkpoint.config
    whole, wider = (meta_model(family, {**config, **words(config, width)}, kind=kind) for width in (hidden, more))
    views, longer = stored_views(whole, shape.checkpoint.tensors), dict(named_tensors(wider))
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in named_tensors(whole):
        view, sizes = views.get(name), list(zip(tensor.shape, longer[name].shape, strict=True))
        if view is None:
            continue
        dims = tuple(dim for dim, (one, other) in enumerate(sizes) if one != other)
        if any(sizes[dim] != (hidden, more) for dim in dims) or (view.rows and 0 in dims) or view.turned:
            raise UnsupportedError(
                f"{view.tensor}: its size follows from the hidden size in a way that is not known here", "`of: neurons`"
            )
        # A file may hold a tied tensor under several of its names.
        found |= dict.fromkeys({view.tensor, name} & set(shape.checkpoint.tensors), dims)
    return found


def norms(shape: ModelShape, axis: Axis) -> list[str]:
    """Return the names of the weights of norms over the hidden channels."""
    return [cut.tensor for cut in axis.cuts if shape.places[cut.tensor].kind == "norm"]


def factors(shape: ModelShape, width: int) -> dict[str, float]:
    """Return for each tensor the number to multiply it by, to correct a factor that follows from the hidden size.

    Gemma multiplies embeddings by the square root of the hidden size. T5 with tied embeddings divides by it before its
    head.
    """
    config, places = shape.checkpoint.config, shape.places
    settings = transformers_config(config)
    root = float(settings.hidden_size / width) ** 0.5
    found: dict[str, float] = {}
    looks_up = config.get("model_type") in ROOT
    tied = bool(getattr(settings, "tie_word_embeddings", False))
    if looks_up:
        kinds = ("embedding", "head") if tied else ("embedding",)
        found = {name: root for name, place in places.items() if place.layer is None and place.kind in kinds}
    if (looks_up and tied) or getattr(settings, "scale_decoder_outputs", False):
        last = "decoder" if "decoder" in shape.blocks else next(iter(shape.blocks))
        final = (
            name for name, place in places.items() if (place.kind, place.layer, place.side) == ("norm", None, last)
        )
        found |= dict.fromkeys(final, 1 / root)
    return found
