"""Leaving out everything in a model's folder that could run code when transformers loads it.

``auto_map`` names Python files of the folder or of the hub, and ``custom_generate`` replaces ``generate``. An attention
or experts implementation that transformers lacks is a kernel that it fetches from the hub. A PEFT adapter's folder
names a model there. Weights that are pickles can run code. None of it is used or written; ``sparsebench.json`` lists
the names of what was left out, pickles beside the model's own weights excepted.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.models.files.gguf_variant import GGUF_FILE, is_gguf
from sparsebench.sources.cache import read_json, write_json

NOTES = "sparsebench.json"
_CODE_FILES = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".ipynb", ".pkl", ".pickle"}
_PICKLED_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt"}
_WEIGHT_FILES = _PICKLED_WEIGHTS | {".safetensors", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".tflite"}
"""Weights in any format, pickles, which can run code, among them."""
_FOREIGN_FOLDERS = {"onnx", "openvino", "coreml", "original", "runs"}
"""Folders of the model in other formats, and of training logs."""
_CHECKPOINT_FOLDER = re.compile(r"checkpoint-\d+")
"""A trainer's earlier weights, with the state of its optimizer."""
_CODE_KEYS = {"auto_map", "custom_generate", "custom_pipelines"}
_IMPLEMENTATIONS = {"attn_implementation", "experts_implementation"}
_BUILT_IN = ("eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm", None)
"""Implementations that transformers has itself."""


def without_code(settings: Any, prefix: str = "") -> tuple[Any, list[str]]:
    """Return a JSON value without the keys that name code at any depth, and those keys, each after ``prefix``."""
    if isinstance(settings, list):
        items = [without_code(value, f"{prefix}{index}.") for index, value in enumerate(settings)]
        return [item for item, _ in items], [name for _, names in items for name in names]
    if not isinstance(settings, dict):
        return settings, []
    kept: dict[Any, Any] = {}
    removed: list[str] = []
    for key, value in settings.items():
        if _names_code(str(key), value):
            removed.append(f"{prefix}{key}")
        else:
            kept[key], inner = without_code(value, f"{prefix}{key}.")
            removed += inner
    return kept, removed


def _names_code(key: str, value: Any) -> bool:
    if key.lstrip("_").removesuffix("_internal") in _IMPLEMENTATIONS:
        return any(name not in _BUILT_IN for name in (value.values() if isinstance(value, dict) else [value]))
    return key in _CODE_KEYS


def companions(folder: Path) -> list[Path]:
    """Return what a model folder holds beside its weights: configuration, tokenizer, pooling.

    Left out are weights of any format, their indexes, folders of other formats and of a trainer's checkpoints, hidden
    files and ``sparsebench.json``. The file of a GGUF variant stays.
    """
    config = folder / "config.json"
    gguf_name = GGUF_FILE if config.is_file() and is_gguf(bounded.read_object(config)) else None
    paths = []
    for path in sorted(folder.iterdir()):
        weights = is_weights(path) and path.name != gguf_name
        unwanted = path.name == NOTES or is_foreign(path) or path.name.endswith(".index.json")
        if not (weights or unwanted or path.name.startswith(".")):
            paths.append(path)
    return paths


def is_weights(path: Path) -> bool:
    """Whether a file holds weights in any format, those of ``sparsebench pack`` included, or lists such files."""
    return path.suffix.lower() in _WEIGHT_FILES or ".safetensors" in path.suffixes


def is_foreign(path: Path) -> bool:
    """Whether a model folder's entry is the model in another format, training logs, or a trainer's earlier weights."""
    return path.name in _FOREIGN_FOLDERS or bool(_CHECKPOINT_FOLDER.fullmatch(path.name))


def copy_companions(folder: Path, target: Path) -> list[str]:
    """Copy what a model folder holds beside its weights, without code; return what was left out."""
    return [name for path in companions(folder) for name in copy_companion(path, target / path.name)]


def copy_companion(path: Path, target: Path) -> list[str]:
    """Copy a model's file or folder without code and pickles; return what was left out, as ``config.json: auto_map``."""
    if path.is_dir():
        target.mkdir()
        inside = [name for inner in sorted(path.iterdir()) for name in copy_companion(inner, target / inner.name)]
        return [f"{path.name}/{name}" for name in inside]
    if path.suffix.lower() in _CODE_FILES | _PICKLED_WEIGHTS:
        return [path.name]
    if path.name.endswith("config.json"):
        settings, removed = without_code(bounded.read_json(path))
        if removed:
            target.write_text(json.dumps(settings, indent=2), encoding="utf-8")
            return [f"{path.name}: {key}" for key in removed]
    shutil.copy2(path, target)
    return []


def left_out_files(folder: Path) -> list[str]:
    """Return what was left out of a folder that sparsebench wrote, or of the one that it was made from."""
    return _left_out(read_json(folder / NOTES) or {})


def _left_out(notes: Mapping[str, Any]) -> list[str]:
    names = notes.get("left_out")
    return [str(name) for name in names] if isinstance(names, list) else []


def record_left_out(folder: Path, removed: list[str]) -> None:
    """Add the names of what was ``removed`` from a folder to its ``sparsebench.json``."""
    if removed:
        notes = read_json(folder / NOTES) or {}
        names = list(dict.fromkeys([*_left_out(notes), *removed]))
        write_json(folder / NOTES, {**notes, "left_out": names}, indent=1)


def left_out_sentence(removed: list[str]) -> str:
    """Return a note of what was left out; empty where nothing was."""
    return f"left out, because code of a model is never run: {', '.join(removed)}" if removed else ""


def refuse_adapter(folder: Path) -> None:
    """Raise ModelError for a PEFT adapter: if peft is installed, transformers would load it or fetch its base model."""
    path = folder / "adapter_config.json"
    if path.is_file():
        base = bounded.read_object(path).get("base_model_name_or_path")
        raise ModelError(
            f"{path}: a PEFT adapter (`base_model_name_or_path` is {base!r}), which is neither loaded nor measured",
            "merge it into its model (merge_and_unload) and name that folder; a whole model needs no such file",
        )
