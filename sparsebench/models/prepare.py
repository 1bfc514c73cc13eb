"""Converting checkpoints to the one form that all stages read: a Hugging Face folder of safetensors in one precision.

A weight file is never whole in memory: tensors are read, converted and written one after another. (Exceptions are GGUF
files, which transformers dequantizes whole, and pickles from before torch 1.6.) The model's other files are copied:
tokenizer, generation settings, sentence-transformers' modules.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.models import gguf, precision
from sparsebench.models.building import reserve
from sparsebench.models.checkpoint import (
    FLOATS,
    Checkpoint,
    CheckpointWriter,
    TensorInfo,
    element_bytes,
    lay_out,
    safetensors_dtype,
    torch_dtype,
    whole_shards,
)
from sparsebench.models.families import meta_model
from sparsebench.models.load import load_gguf
from sparsebench.models.masked import MASKED, Merged, masked_names
from sparsebench.models.safety import refuse_adapter
from sparsebench.paths import INDEX, PICKLE_INDEX, WEIGHTS, check

if TYPE_CHECKING:
    import torch

    from sparsebench.manifest.schema import Family

_SHARED = 8
"""How many times its file's bytes a pickled checkpoint's tensors may have: tied tensors share theirs."""
_PICKLE = "pytorch_model.bin"


def prepare(source: Path, out: Path, family: Family, dtype: str = "auto", link: bool = False) -> Path:
    """Write ``out`` from a Hugging Face folder (safetensors or PyTorch's .bin) or a GGUF file; it appears whole.

    ``dtype`` is float32, bfloat16 or float16, or ``auto``: each tensor's own (float32 from a GGUF file). Files whose
    weights all have it are copied, or hard-linked with ``link``, which is only for a source that nobody edits. A weight
    that torch's prune left as ``weight_orig`` and ``weight_mask`` is written as their product. Raises ModelError for
    unreadable or quantized files, values that do not fit in float16, or a family that does not fit.
    """
    source, out = Path(source), Path(out)
    if dtype != "auto":
        precision.resolve(dtype, {})
    refuse_adapter(source)
    if source.is_file() or not (source / "config.json").is_file():
        return _from_gguf(_gguf_file(source), out, family, dtype)
    check(source)
    config = bounded.read_object(source / "config.json")
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise ModelError(
            f"{source}: its weights are quantized ({method or 'by an unknown method'})",
            "name the checkpoint it was made from",
        )
    pickles = [name for name in (_PICKLE, PICKLE_INDEX) if (source / name).is_file()]
    if pickles and not any((source / name).is_file() for name in (WEIGHTS, INDEX)):
        return _from_pickles(source, pickles[0], out, family, dtype)
    checkpoint = Checkpoint(source)
    infos = list(checkpoint.tensors.values())
    if masked := masked_names(checkpoint.tensors, source):
        return _unmasked(Merged(source, masked, checkpoint.tensors, checkpoint.load), out, family, dtype)
    if all(_target(info.dtype, dtype) == info.dtype for info in infos):
        return _copied(checkpoint, out, link)
    layout = [TensorInfo(i.name, _target(i.dtype, dtype), i.shape, i.file, 0, 0) for i in infos]
    return _written(source, out, layout, checkpoint.load)


def _unmasked(found: Merged, out: Path, family: Family, dtype: str) -> Path:
    """Write each weight with its mask applied; the files are laid out anew, because the masks are dropped."""
    found.drop_ties(meta_model(family, bounded.read_object(found.where / "config.json")).all_tied_weights_keys)
    layout = lay_out([(name, _target(info.dtype, dtype), info.shape) for name, info in found.infos.items()])
    return _written(found.where, out, layout, found.load, {MASKED: len(found.masked)})


def _target(stored: str, dtype: str) -> str:
    """Return the safetensors dtype to write: floating point changes, integers and booleans stay."""
    return stored if dtype == "auto" or stored not in FLOATS else precision.NAMES[dtype]


def _written(
    source: Path,
    out: Path,
    layout: list[TensorInfo],
    load: Callable[[str], torch.Tensor],
    notes: dict[str, Any] | None = None,
) -> Path:
    """Convert tensor by tensor into ``layout``."""
    _reserve(out, layout)
    with CheckpointWriter(out, layout, source) as writer:
        for info in layout:
            tensor = load(info.name)
            converted = tensor.to(torch_dtype(info.dtype))
            if info.dtype == "F16" and bool(converted.isinf().any()) and not bool(tensor.isinf().any()):
                largest = float(tensor.abs().max())
                raise ModelError(
                    f"{source}: {info.name} reaches {largest:.3g}, more than float16 holds", "use bfloat16"
                )
            writer.write(info.name, converted)
        _state_precision(writer.partial, layout)
        return writer.close(notes)


def _reserve(out: Path, layout: list[TensorInfo]) -> None:
    reserve(out, sum(info.numel * element_bytes(info.dtype) for info in layout))


def _copied(checkpoint: Checkpoint, out: Path, link: bool) -> Path:
    """Copy or hard-link the weight files unchanged."""
    reserve(out, 0 if link else sum(info.nbytes for info in checkpoint.tensors.values()))
    with CheckpointWriter(out, [], checkpoint.folder) as writer:
        for name in (*checkpoint.files, *([] if checkpoint.files == (WEIGHTS,) else [INDEX])):
            # The hub's cache holds links to its blobs: copy the file itself.
            original = (checkpoint.folder / name).resolve()
            if not (link and _linked(original, writer.partial / name)):
                shutil.copyfile(original, writer.partial / name)
        _state_precision(writer.partial, list(checkpoint.tensors.values()))
        return writer.close()


def _linked(original: Path, name: Path) -> bool:
    try:
        os.link(original, name)
    except OSError:  # another file system, or one without hard links: the caller then copies
        return False
    return True


def _state_precision(folder: Path, tensors: list[TensorInfo]) -> None:
    """Write the precision of most of the weights into config.json: loading with ``auto`` follows it."""
    weight = Counter[str]()
    for info in tensors:
        if info.dtype in FLOATS:
            weight[info.dtype] += info.numel
    stored = weight.most_common(1)[0][0] if weight else "F32"
    name = next(name for name, code in precision.NAMES.items() if code == stored)
    path = folder / "config.json"
    path.write_text(json.dumps(precision.stated(bounded.read_object(path), name), indent=2))


def _from_pickles(source: Path, entry: str, out: Path, family: Family, dtype: str) -> Path:
    """Convert PyTorch's own files, mapped into memory and read without running any code in them."""
    tensors: dict[str, torch.Tensor] = {}
    for file in whole_shards(source / entry) if entry == PICKLE_INDEX else [entry]:
        tensors |= _unpickled(source / file)
    config = bounded.read_object(source / "config.json")
    for name, original in meta_model(family, config).all_tied_weights_keys.items():
        one, other = tensors.get(name), tensors.get(original)
        if one is not None and other is not None and one.data_ptr() == other.data_ptr() and one.shape == other.shape:
            del tensors[name]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    codes = {name: safetensors_dtype(tensor.dtype, name) for name, tensor in tensors.items()}
    if masked := masked_names(tensors, source):
        infos = {name: TensorInfo(name, codes[name], shapes[name], "", 0, 0) for name in tensors}
        return _unmasked(Merged(source, masked, infos, tensors.__getitem__), out, family, dtype)
    layout = lay_out([(name, _target(codes[name], dtype), shapes[name]) for name in tensors])
    return _written(source, out, layout, tensors.__getitem__)


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    try:
        # Files older than torch 1.6 are not archives and cannot be mapped.
        archive = zipfile.is_zipfile(path)
        if archive:
            with zipfile.ZipFile(path) as opened:
                if any(member.compress_type != zipfile.ZIP_STORED for member in opened.infolist()):
                    raise OSError("its members are compressed, which torch never does")
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not readable as plain weights ({reason})", "fetch the file again") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"{path}: it holds more than named tensors", "save the model's state_dict alone")
    size, promised = path.stat().st_size, sum(value.numel() * value.element_size() for value in found.values())
    if promised > _SHARED * size:
        message = f"{path}: its tensors claim {promised:,} bytes, but the file has {size:,}"
        raise ModelError(f"{message}: they share the same bytes more than {_SHARED} times", "do not trust this file")
    return found


def _gguf_file(source: Path) -> Path:
    """Return ``source`` if it is a GGUF file whose name ends in .gguf, else raise ModelError.

    Before a file is fetched, only its name tells that its weights are dequantized ones.
    """
    if source.is_dir():
        first = next(iter(sorted(source.glob("*.gguf"))), None)
        if first:
            raise ModelError(f"{source}: a folder of GGUF files", f"name the file itself, such as {first}")
        raise ModelError(
            f"{source}: neither config.json nor a GGUF file", "name a Hugging Face folder, or one GGUF file"
        )
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{source}: not a GGUF file", "name a Hugging Face folder, or one GGUF file")
    if source.suffix.lower() != ".gguf":
        raise ModelError(f"{source}: a GGUF file under another name", "give it a name that ends in .gguf")
    return source


def _from_gguf(file: Path, out: Path, family: Family, dtype: str) -> Path:
    """Convert a GGUF file as transformers loads it: dequantized, with the file's tokenizer."""
    gguf.check(file)
    dtype = "float32" if dtype == "auto" else dtype
    model, tokenizer = load_gguf(file, family, dtype)
    model.config.architectures = [type(model).__name__]
    ties = model.all_tied_weights_keys
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in ties}
    layout = lay_out([(name, safetensors_dtype(t.dtype, name), tuple(t.shape)) for name, t in tensors.items()])
    _reserve(out, layout)
    with CheckpointWriter(out, layout) as writer:
        for name, tensor in tensors.items():
            if dtype == "float16" and bool(tensor.isinf().any()):
                raise ModelError(f"{file}: {name} reaches more than float16 holds", "use bfloat16")
            writer.write(name, tensor)
        for part in (model.config, model.generation_config, tokenizer):
            if part is not None:
                part.save_pretrained(writer.partial)
        _state_precision(writer.partial, layout)
        return writer.close()
