"""Making a model's folder: fetched and converted to the one form that all stages read, or of random weights.

That form is a Hugging Face folder of safetensors in one precision. A weight file is never whole in memory: tensors are
read, converted and written one after another. (Exceptions are GGUF files, which transformers dequantizes whole, and
pickles from before torch 1.6.) The model's other files are copied: tokenizer, generation settings,
sentence-transformers' modules.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsebench import bounded, sources
from sparsebench.errors import ModelError
from sparsebench.escape import is_text
from sparsebench.manifest.names import Family
from sparsebench.manifest.schema import ManifestModel
from sparsebench.models.files import precision
from sparsebench.models.files.building import reserve
from sparsebench.models.files.checkpoint import (
    FETCH_AGAIN,
    FLOAT_DTYPES,
    Checkpoint,
    TensorInfo,
    element_bytes,
    safetensors_dtype,
    torch_dtype,
    whole_shards,
)
from sparsebench.models.files.families import family_of
from sparsebench.models.files.gguf import load_gguf
from sparsebench.models.files.masked import MASKED_COUNT, MergedTensors, masked_names
from sparsebench.models.files.quantized import scheme_of
from sparsebench.models.files.safety import refuse_adapter
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.models.modules.build import meta_model
from sparsebench.models.random_weights import write_random
from sparsebench.paths import INDEX, PICKLE_INDEX, WEIGHTS, check_contained

_SHARED = 8
"""How many times its file's bytes a pickled checkpoint's tensors may have: tied tensors share theirs."""
_PICKLE = "pytorch_model.bin"


def obtain(model: ManifestModel, out: Path, cache: sources.Cache, seed: int) -> Path:
    """Write ``model`` to ``out`` as a Hugging Face folder of safetensors in its precision; it appears whole.

    Weight files of a cache that need no conversion are hard-linked; those of a ``path:``, which its owner may edit, are
    copied. Raises SourceError when the model cannot be fetched, ModelError when it cannot be read.
    """
    if model.source == "random":
        return write_random(model.architecture or {}, out, model.family, model.dtype, seed)
    source = sources.parse(model.source)
    fetched = sources.fetch(source, cache)
    return prepare(fetched, out, model.family, model.dtype, link=source.kind != "path")


def weight_bytes(fetched: Path) -> int:
    """Return the bytes of the weights as fetched, before any conversion: of a file, or of the files that ``prepare`` reads.

    A folder may hold the same weights twice, or other pickles beside them.
    """
    if fetched.is_file():
        return fetched.stat().st_size
    return sum((fetched / name).stat().st_size for name in _pickled_files(fetched) or Checkpoint(fetched).files)


def _pickled_files(folder: Path) -> tuple[str, ...]:
    """Return the names of PyTorch's own weight files where a folder has no safetensors; else none."""
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return ()
    if (folder / _PICKLE).is_file():
        return (_PICKLE,)
    return whole_shards(folder / PICKLE_INDEX) if (folder / PICKLE_INDEX).is_file() else ()


def prepare(source: Path, out: Path, family: Family, dtype: str = "auto", link: bool = False) -> Path:
    """Write ``out`` from a Hugging Face folder (safetensors or PyTorch's .bin) or a GGUF file; it appears whole.

    ``dtype`` is float32, bfloat16 or float16, or ``auto``: each tensor's own (float32 from a GGUF file). Files whose
    weights all have it are copied, or hard-linked with ``link``, which is only for a source that nobody edits; so are
    those that ``apply`` or ``export`` quantized. A weight that torch's prune left as ``weight_orig`` and ``weight_mask``
    is written as their product. Raises ModelError for unreadable files, values that do not fit in float16, or a family
    that does not fit, and UnsupportedError for weights that others quantized.
    """
    if dtype != "auto":
        precision.resolve(dtype, {})  # refuses an unknown one
    refuse_adapter(source)
    if source.is_file() or not (source / "config.json").is_file():
        return _from_gguf(source, out, family, dtype)
    check_contained(source)
    config = bounded.read_object(source / "config.json")
    true_family = family_of(config)
    if true_family not in (None, family):
        raise ModelError(f"{source}: a model of family {true_family}, not {family}", f"family: {true_family}")
    if scheme_of(config):
        if dtype != "auto":
            problem = f"{source}: its weights are integers, which do not become {dtype}"
            raise ModelError(problem, "leave the precision out")
        return _copy_files(Checkpoint(source), out, link)
    pickled = _pickled_files(source)
    if pickled:
        infos, load = _pickled_tensors(source, pickled, family, config)
    else:
        checkpoint = Checkpoint(source)
        infos, load = checkpoint.tensors, checkpoint.load
    notes = None
    masked = masked_names(infos, source)
    if masked:
        merged = MergedTensors(source, masked, infos, load)
        merged.drop_ties(meta_model(family, config).all_tied_weights_keys)
        infos, load, notes = merged.infos, merged.load, {MASKED_COUNT: len(masked)}
    layout = [replace(info, name=name, dtype=_target_dtype(info.dtype, dtype)) for name, info in infos.items()]
    if pickled or masked:
        layout = lay_out([(info.name, info.dtype, info.shape) for info in layout])
    elif all(info.dtype == checkpoint.tensors[info.name].dtype for info in layout):
        return _copy_files(checkpoint, out, link)
    return _write_converted(source, out, layout, load, notes)


def _target_dtype(stored: str, dtype: str) -> str:
    """Return the safetensors dtype to write: floating point changes, integers and booleans stay."""
    return stored if dtype == "auto" or stored not in FLOAT_DTYPES else precision.SAFETENSORS_NAMES[dtype]


def _write_converted(
    source: Path,
    out: Path,
    layout: list[TensorInfo],
    load: Callable[[str], torch.Tensor],
    notes: dict[str, Any] | None = None,
    companions: list[Any] | None = None,
) -> Path:
    """Convert tensor by tensor into ``layout``; ``companions`` are transformers' objects to save, else the source's."""
    reserve(out, sum(info.numel * element_bytes(info.dtype) for info in layout))
    with CheckpointWriter(out, layout, source if companions is None else None) as writer:
        for info in layout:
            tensor = load(info.name)
            converted = tensor.to(torch_dtype(info.dtype))
            if info.dtype == "F16":
                overflown = tensor[converted.isinf() & ~tensor.isinf()].abs()
                if overflown.numel():
                    problem = f"{source}: {info.name} reaches {float(overflown.max()):.3g}, more than float16 holds"
                    raise ModelError(problem, "use bfloat16")
            writer.write(info.name, converted)
        for companion in companions or ():
            companion.save_pretrained(writer.partial)
        _state_precision(writer.partial, layout)
        return writer.close(notes)


def _copy_files(checkpoint: Checkpoint, out: Path, link: bool) -> Path:
    """Copy or hard-link the weight files unchanged."""
    reserve(out, 0 if link else sum(info.nbytes for info in checkpoint.tensors.values()))
    with CheckpointWriter(out, [], checkpoint.folder) as writer:
        for name in (*checkpoint.files, *([] if checkpoint.files == (WEIGHTS,) else [INDEX])):
            # The hub's cache holds links to its blobs: copy the file itself.
            original = (checkpoint.folder / name).resolve()
            if not (link and _try_link(original, writer.partial / name)):
                shutil.copyfile(original, writer.partial / name)
        if not scheme_of(checkpoint.config):  # beside integers, the config's precision is that of their scales
            _state_precision(writer.partial, checkpoint.tensors.values())
        return writer.close()


def _try_link(original: Path, target: Path) -> bool:
    try:
        os.link(original, target)
    except OSError:  # another file system, or one without hard links: the caller then copies
        return False
    return True


def _state_precision(folder: Path, tensors: Iterable[TensorInfo]) -> None:
    """Write the precision of most of the weights into config.json: loading with ``auto`` follows it."""
    path = folder / "config.json"
    name = precision.of_weights({info.name: info for info in tensors})
    path.write_text(json.dumps(precision.with_dtype(bounded.read_object(path), name), indent=2))


def _pickled_tensors(
    source: Path, files: Iterable[str], family: Family, config: dict[str, Any]
) -> tuple[dict[str, TensorInfo], Callable[[str], torch.Tensor]]:
    """Return the tensors of PyTorch's own files and a function that loads one; tied ones are kept once."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= _read_pickle(source / file)
    for name, original in meta_model(family, config).all_tied_weights_keys.items():
        if name in tensors and original in tensors:
            left, right = tensors[name], tensors[original]
            if left.data_ptr() == right.data_ptr() and left.shape == right.shape:
                del tensors[name]
    return _infos(tensors), tensors.__getitem__


def _infos(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, safetensors_dtype(tensor.dtype, name), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Map a pickled file into memory and read it without running any code in it."""
    try:
        # Files older than torch 1.6 are not archives and cannot be mapped.
        archive = zipfile.is_zipfile(path)
        if archive:
            with zipfile.ZipFile(path) as opened:
                if any(member.compress_type != zipfile.ZIP_STORED for member in opened.infolist()):
                    raise OSError("its members are compressed, which torch never does")
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not readable as plain weights ({reason})", FETCH_AGAIN) from error
    if not isinstance(tensors, dict) or not all(map(_is_plain, tensors, tensors.values())):
        raise ModelError(f"{path}: it holds more than named plain tensors", "save the model's state_dict alone")
    size, promised = path.stat().st_size, sum(value.numel() * value.element_size() for value in tensors.values())
    if promised > _SHARED * size:
        problem = f"{path}: its tensors claim {promised:,} bytes, but the file has {size:,}"
        raise ModelError(f"{problem}: they share the same bytes more than {_SHARED} times", "do not trust this file")
    return tensors


def _is_plain(name: object, tensor: object) -> bool:
    """Return whether an entry of a pickle is a tensor of numbers in memory under a name that safetensors can have."""
    if not isinstance(tensor, torch.Tensor) or not isinstance(name, str):
        return False
    in_memory = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_nested
    return in_memory and is_text(name) and name != "__metadata__"


def _from_gguf(file: Path, out: Path, family: Family, dtype: str) -> Path:
    """Convert a GGUF file as transformers loads it: dequantized, with the file's tokenizer."""
    hint = "name a Hugging Face folder, or one GGUF file whose name ends in .gguf"
    if file.is_dir():
        raise ModelError(f"{file}: it has no config.json", hint)
    with file.open("rb") as opened:
        # Before a file is fetched, only its name tells that its weights are dequantized ones.
        if opened.read(4) != b"GGUF" or file.suffix.lower() != ".gguf":
            raise ModelError(f"{file}: not a GGUF file", hint)
    model, tokenizer = load_gguf(file, family, "float32" if dtype == "auto" else dtype)
    model.config.architectures = [type(model).__name__]
    ties = model.all_tied_weights_keys
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in ties}
    infos = _infos(tensors)
    layout = lay_out([(info.name, info.dtype, info.shape) for info in infos.values()])
    companions = [part for part in (model.config, model.generation_config, tokenizer) if part is not None]
    return _write_converted(file, out, layout, tensors.__getitem__, companions=companions)
