"""A variant's folder in a form that other programs load, with a check that they do.

A format is a row of FORMATS: what it cannot hold, by config.json, and the function that writes and loads back.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError, Refusal, library_errors
from sparsebench.manifest.names import Family
from sparsebench.models.files import building, gguf_variant
from sparsebench.models.files.checkpoint import CONV1D_TYPES, Checkpoint
from sparsebench.models.files.families import PER_LAYER, auto_class, has_classifier
from sparsebench.models.files.gguf_variant import GGUF_FILE
from sparsebench.models.files.quantized import KEY, METHOD, encoding_of, open_checkpoint, scheme_of
from sparsebench.models.files.safety import NOTES
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.models.modules.skipping import skips_weights
from sparsebench.runtime import Setting, Workload, engine_refusal
from sparsebench.storage import is_packed, unpack

TOLERANCE = 1e-3
"""The most by which the outputs of a program that loads the export may differ from the variant's, relative L2."""
CHECKED_TOKENS = 16


@dataclass(frozen=True)
class ExportFormat:
    """One format. ``refuse`` says why a model with this config.json cannot be exported; ``write`` makes the folder and
    returns how far its outputs are from the variant's, as the other program loads it.
    """

    name: str
    program: str
    refuse: Callable[[Mapping[str, Any]], Refusal | None]
    write: Callable[[Path, Family, Path], float]
    tolerance: float = TOLERANCE


def export(folder: Path, family: Family, out: Path, name: str) -> float:
    """Write the variant in ``folder``, packed or not, to ``out`` in a format; return how far its outputs are.

    Raises UnsupportedError where the format cannot hold the variant, ModelError where the other program does not load
    it, or calculates something else; ``out`` is then not there.
    """
    export_format = FORMATS[name]
    with _unpacked(folder, out) as unpacked:
        if refusal := export_format.refuse(Checkpoint(unpacked).config):
            raise refusal.error()
        partial = building.new_partial(out)
        try:
            distance = export_format.write(unpacked, family, partial)
            if not distance <= export_format.tolerance:
                reason = f"{export_format.program} gives outputs that differ by {distance:.1e}"
                raise ModelError(f"{out}: {reason}", "report the model type")
            building.rename_whole(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return distance


@contextmanager
def _unpacked(folder: Path, out: Path) -> Iterator[Path]:
    """Yield the variant's folder, a packed one unpacked beside ``out``: where it lies may be for reading only."""
    if not is_packed(folder):
        yield folder
        return
    with building.temporary(out.with_name(f".{out.name}.unpacked")) as scratch:
        yield unpack(folder, scratch / folder.name)


def _hf_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """Return why stock transformers cannot run a model, whatever its weights."""
    if config.get(PER_LAYER):
        return Refusal("its blocks differ in width, which stock transformers refuses", "shrink it without `uneven`")
    if skips_weights(config):
        return Refusal("stock transformers would calculate with all of its weights", "use it with sparsebench")
    return None


def _integer_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """Return why a model's weights cannot be handed over as integers."""
    if not scheme_of(config):
        return Refusal(
            "its weights are floats, and compressed-tensors is for integers", "--format hf, or quantize it first"
        )
    if str(config.get("model_type")) in CONV1D_TYPES:
        return Refusal("compressed-tensors knows no Conv1D, as this model has them", "--format hf")
    if find_spec("compressed_tensors") is None:
        return Refusal(
            "compressed-tensors is not installed, so nothing can load it back", "pip install compressed-tensors"
        )
    return _hf_refusal(config)


def _write_floats(folder: Path, family: Family, out: Path) -> float:
    """Write the weights as floats under transformers' names, and load the folder with stock transformers."""
    checkpoint = open_checkpoint(folder)
    layout = lay_out([(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values()])
    with CheckpointWriter(out, layout, folder) as writer:
        for info, weights in checkpoint.items():
            writer.write(info.name, weights)
        config = writer.partial / "config.json"
        settings = bounded.read_object(config)
        settings.pop(KEY, None)
        if settings.pop(gguf_variant.KEY, None):  # floats are exported, not the file that llama.cpp reads
            (writer.partial / GGUF_FILE).unlink()
        config.write_text(json.dumps(settings, indent=2))
        writer.close()
    return _distance(folder, family, out)


def _write_integers(folder: Path, family: Family, out: Path) -> float:
    """Copy the folder, whose layout is that of compressed-tensors, and load it with stock transformers."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(".*", NOTES), dirs_exist_ok=True)
    return _distance(folder, family, out)


def _distance(folder: Path, family: Family, out: Path) -> float:
    """Return how far stock transformers' outputs for ``out`` are from ours for ``folder``."""
    import torch
    from transformers.utils import logging

    from sparsebench.models.modules.load import load_model
    from sparsebench.runtime.parity import distance
    from sparsebench.runtime.workload import draw_prompt

    logging.disable_progress_bar()
    config = Checkpoint(folder).config
    ids = draw_prompt(config, Workload(1, CHECKED_TOKENS, 0)).ids
    model_inputs = {"input_ids": ids}
    if config.get("is_encoder_decoder") and not has_classifier(config):
        model_inputs["decoder_input_ids"] = ids
    elif isinstance(end := config.get("eos_token_id"), int):
        ids[:, -1] = end  # where the heads of encoder-decoders look
    with library_errors(f"{out.name}: stock transformers does not load it", "report the model type"):
        stock = (
            auto_class(family, config)
            .from_pretrained(str(out), dtype="auto", local_files_only=True, trust_remote_code=False)
            .eval()
        )
        with torch.inference_mode():
            stock_output, output = (
                next(iter(model(**model_inputs).values())).float() for model in (stock, load_model(folder, family))
            )
    return distance(stock_output, output)


def _write_gguf(folder: Path, family: Family, out: Path) -> float:
    """Write one GGUF file, or copy that of a variant which is one, and load it with llama.cpp, which compares its logits."""
    from sparsebench.runtime.engines.base import SavedModel
    from sparsebench.runtime.engines.llamacpp import LlamaCpp
    from sparsebench.runtime.workload import draw_prompt

    with TemporaryDirectory() as scratch:
        source, engine = SavedModel(folder, family), LlamaCpp(Path(scratch))
        engine.start(0, 1)
        engine.prepare([source])
        parity = engine.parity(source, draw_prompt(Checkpoint(folder).config, Workload(1, CHECKED_TOKENS, 0)))
        shutil.copy2(engine.file(source), out / GGUF_FILE)
    return parity.relative_l2


def _gguf_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """Return why llama.cpp cannot load a model."""
    return engine_refusal(config, encoding_of(config), Setting("llamacpp", 1, Workload()))


FORMATS = {
    row.name: row
    for row in (
        ExportFormat("hf", "stock transformers", _hf_refusal, _write_floats),
        # Parity has a limit of its own: llama.cpp rounds products.
        ExportFormat("gguf", "llama.cpp", _gguf_refusal, _write_gguf, math.inf),
        ExportFormat(METHOD, "stock transformers with compressed-tensors", _integer_refusal, _write_integers),
    )
}
