"""The packed format: a model folder whose weight files are packed, and back, bit for bit.

``NAME.safetensors`` becomes ``NAME.safetensors.packed``, so that nothing takes a packed folder for a model.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparsebench.errors import StorageError
from sparsebench.models.checkpoint import INDEX, Checkpoint, TensorInfo
from sparsebench.storage.container import read_packed, write_packed
from sparsebench.storage.encodings import Bytes

SUFFIX = ".packed"
_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".gguf", ".onnx"}


@dataclass(frozen=True)
class PackedSummary:
    """What ``pack`` wrote.

    ``dense_bytes`` and ``packed_bytes`` are those of the weight files, headers included; ``encodings`` counts tensors
    by encoding; ``left_out`` names the files that hold weights once more, in another format, and were not copied.
    """

    folder: str
    dense_bytes: int
    packed_bytes: int
    encodings: dict[str, int]
    left_out: tuple[str, ...]


def pack(folder: Path, out: Path) -> PackedSummary:
    """Pack a Hugging Face folder into ``out``, one tensor in memory at a time; the other files are copied.

    Weights that the folder holds a second time in another format (pytorch_model.bin and the like) are left out.
    ``out`` appears only when it is whole. Raises ModelError when the folder cannot be read and StorageError
    when ``out`` exists and is not an earlier packed folder.
    """
    folder, out = Path(folder), Path(out)
    checkpoint = Checkpoint(folder)
    dense_bytes = sum((folder / file).stat().st_size for file in checkpoint.files)
    others = [path for path in sorted(folder.iterdir()) if path.name not in checkpoint.files and path.name[0] != "."]
    left_out = [path for path in others if path.is_file() and path.suffix in _OTHER_WEIGHTS]
    encodings: Counter[str] = Counter()
    with _appearing(folder, out, replace=is_packed(out)) as partial:
        for path in others:
            if path not in left_out:
                # A loader that finds the index would look for its shards.
                _copy(path, partial / (path.name + SUFFIX * (path.name == INDEX)))
        for file in checkpoint.files:
            encodings.update(write_packed(folder / file, partial / (file + SUFFIX)).values())
    packed_bytes, _ = sizes(out)
    return PackedSummary(str(out), dense_bytes, packed_bytes, dict(encodings), tuple(path.name for path in left_out))


def unpack(packed: Path, out: Path) -> Path:
    """Restore the Hugging Face folder that was packed, one tensor in memory at a time; returns ``out``.

    Every tensor is checked against its checksum. Raises StorageError naming file and tensor when the packed folder
    is truncated, damaged or of another version, and when ``out`` exists and is not empty.
    """
    packed, out = Path(packed), Path(out)
    files = _packed_files(packed)
    with _appearing(packed, out, replace=False) as partial:
        for path in sorted(packed.iterdir()):
            if path not in files:
                _copy(path, partial / (INDEX if path.name == INDEX + SUFFIX else path.name))
        for path in files:
            source = read_packed(path)
            with (partial / path.name.removesuffix(SUFFIX)).open("wb") as file:
                file.write(source.prefix)
                for entry in source.entries:
                    file.seek(entry.info.begin)
                    file.write(source.load(entry).data)
    return out


def tensors(packed: Path) -> Iterator[tuple[TensorInfo, Bytes]]:
    """Every tensor of a packed folder with its original bytes, one at a time. Raises StorageError as ``unpack``."""
    for path in _packed_files(packed):
        source = read_packed(path)
        for entry in source.entries:
            yield entry.info, source.load(entry)


def sizes(packed: Path) -> tuple[int, dict[str, int]]:
    """Bytes of the packed weight files, headers included, and of each tensor by name."""
    files = _packed_files(packed)
    each = {entry.info.name: entry.nbytes for path in files for entry in read_packed(path).entries}
    return sum(path.stat().st_size for path in files), each


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed weight files."""
    return any(Path(folder).glob(f"*.safetensors{SUFFIX}"))


def _packed_files(packed: Path) -> list[Path]:
    files = sorted(Path(packed).glob(f"*.safetensors{SUFFIX}"))
    if not files:
        raise StorageError(f"{packed}: no *.safetensors{SUFFIX} file", "name a folder made by `sparsebench pack`")
    index = Path(packed) / (INDEX + SUFFIX)
    if index.is_file():
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"{index}: damaged ({error!r})", "pack the model again") from error
        if missing := named - {path.name.removesuffix(SUFFIX) for path in files}:
            raise StorageError(f"{packed}: {min(missing)}{SUFFIX} is missing", "copy the whole packed folder again")
    return files


@contextmanager
def _appearing(source: Path, out: Path, replace: bool) -> Iterator[Path]:
    """A folder under a temporary name that becomes ``out`` when all went well, and vanishes otherwise."""
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise StorageError(f"{out}: lies in {source}, which is read", "choose a folder elsewhere")
    if out.exists() and not replace and (out.is_file() or any(out.iterdir())):
        raise StorageError(f"{out}: exists and is not empty", "choose a new folder, or remove it first")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copy2(path, target)
