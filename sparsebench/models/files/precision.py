"""The names of precisions in a manifest, safetensors, torch and a config.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import TensorInfo, dtype_name
from sparsebench.models.files.families import NESTED, text_config

SAFETENSORS_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The safetensors dtype of each precision (by torch's name)."""


def of_config(config: Mapping[str, Any]) -> str | None:
    """Return the precision that config.json states, by torch's name; None when it states none."""
    for part in (config, text_config(config)):
        stated = part.get("dtype") or part.get("torch_dtype")
        if stated:
            return dtype_name(stated)
    return None


def of_weights(tensors: Mapping[str, TensorInfo]) -> str:
    """Return the precision of most of the weights; float32 where there are none."""
    weights = Counter({"float32": 0})
    for info in tensors.values():
        for name, code in SAFETENSORS_NAMES.items():
            weights[name] += info.numel * (code == info.dtype)
    return weights.most_common(1)[0][0]


def resolve(dtype: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo] | None = None) -> str:
    """Return ``dtype``, or for ``auto`` that of config.json, else of most ``tensors``.

    Raises ModelError for an unknown one.
    """
    name = (of_config(config) or of_weights(tensors or {})) if dtype == "auto" else dtype
    if name not in SAFETENSORS_NAMES:
        raise ModelError(f"there is no precision {name!r} here", f"name one of {', '.join(SAFETENSORS_NAMES)}")
    return name


def with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of the config that states the precision ``name`` and no quantization."""
    changed = {key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")}
    if isinstance(changed.get(NESTED), dict):
        changed[NESTED] = with_dtype(changed[NESTED], name)
    return {**changed, "dtype": name}
