"""Finds the size of a model as cheaply as possible: exactly from a prepared folder, else roughly from its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import ModelError
from sparsebench.manifest.schema import ManifestModel
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import dimensions
from sparsebench.models.shape.topology import prunable_share
from sparsebench.plan.estimate import ModelSize

WIDTH = {"bfloat16": 2, "float16": 2}
"""Bytes of a weight, where they are not 4."""
MOST = 100_000_000_000_000
"""The most parameters that are believed; the largest models have a hundredth of these."""
UNKNOWN = 500_000_000
PACKAGED = {"gguf": 160_000_000, "other": 25_000_000}
"""The parameters assumed for a model in a package that has not been read yet. A package index takes files up to 100 MB
by default: about 160M weights of 4 bits, or 25M of 32."""


def model_size(model: ManifestModel, config: Mapping[str, Any] | None, folder: Path) -> ModelSize:
    """Return the size of a model in its working precision: counted in the prepared ``folder``, else from the config.

    Without either it is a guess. Raises ModelError for a config with sizes that no model has.
    """
    try:
        checkpoint = Checkpoint(folder)
        tensors = checkpoint.tensors.values()
        share = prunable_share(checkpoint, model.family)
        return ModelSize(sum(t.numel for t in tensors), sum(t.nbytes for t in tensors), share)
    except ModelError:
        pass
    count = parameters(config) if config else _guess(str(model.source))
    if not 0 < count <= MOST or (config and not 0 <= _tables(config) <= count):
        wrong = f"{model.name}: by its config.json it has {count:,} parameters"
        raise ModelError(wrong, "correct its sizes (hidden_size, num_hidden_layers, vocab_size …), or fetch it again")
    written = (config or {}).get("dtype") or (config or {}).get("torch_dtype") or "float32"
    dtype = model.dtype if model.dtype != "auto" else str(written)
    prunable = 1 - _tables(config) / count if config else None
    return ModelSize(count, count * WIDTH.get(dtype, 4), prunable)


def _guess(source: str) -> int:
    if not source.startswith("wheel:"):
        return UNKNOWN
    return PACKAGED["gguf" if ".gguf" in source.lower() else "other"] * max(1, source.count("=="))


def parameters(config: Mapping[str, Any]) -> int:
    """Return a transformer's parameters from its config.json, within about 10%: embeddings, attention and feed-forward."""
    size = dimensions(config)
    attention = size.hidden * size.head_size * (2 * size.heads + 2 * size.key_heads)
    act = str(config.get("feed_forward_proj") or config.get("hidden_act") or "")
    gated = str(config.get("model_type")) not in (
        "bert",
        "roberta",
        "gpt_neox",
        "deberta-v2",
        "opt",
        "starcoder2",
    ) and (act.startswith("gated") or act in ("silu", "swiglu", "gelu_pytorch_tanh"))
    forward = size.hidden * size.inner * (3 if gated else 2) * size.experts
    return _tables(config) + size.layers * (attention + forward) + size.decoder_layers * (2 * attention + forward)


def _tables(config: Mapping[str, Any]) -> int:
    """Return the parameters of the embeddings and of an untied output head: nearly all that is not prunable."""
    size = dimensions(config)
    return size.vocabulary * size.hidden * (2 if config.get("tie_word_embeddings") is False else 1)
