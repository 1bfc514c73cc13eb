"""Store a model folder with its weight files in a format, and restore it bit for bit.

``NAME.safetensors`` becomes ``NAME.safetensors.FORMAT``, so that no loader takes a stored folder for a model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sparsebench.errors import ModelError, StorageError
from sparsebench.models.files.building import new_partial, rename_whole
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.safety import copy_companion, is_foreign, is_weights, record_left_out
from sparsebench.paths import INDEX, WEIGHTS, check_contained, shard_names
from sparsebench.storage.coding import Coding
from sparsebench.storage.container import read, write
from sparsebench.storage.words import Bytes, Scratch


def store(folder: Path, out: Path, coding: Coding) -> None:
    """Store a Hugging Face folder in ``out``, with one tensor in memory at a time; copy the other files, except code.

    Weights that the folder holds again in another format (pytorch_model.bin and the like), or as they were earlier in a
    training, are left out. ``out`` appears only when it is complete. Raises ModelError when the folder cannot be read;
    StorageError when ``out`` is inside the folder, or is not empty and not an earlier folder in this format.
    """
    checkpoint = Checkpoint(folder)
    # transformers reads no index beside a whole file.
    indexes = () if checkpoint.files == (WEIGHTS,) else (folder / INDEX,)
    files = [path for path in sorted(folder.iterdir()) if not is_foreign(path)]
    companions = [path for path in files if path in indexes or path.is_dir() or not is_weights(path)]
    with _appearing(folder, out, replace=holds(out, coding)) as partial:
        # The index is renamed too: a loader that finds it would look for its shards.
        _copy(companions, {INDEX: INDEX + coding.suffix}, partial)
        for file in checkpoint.files:
            write(folder / file, partial / (file + coding.suffix), coding)


def restore(stored: Path, out: Path, coding: Coding) -> Path:
    """Restore the Hugging Face folder that was stored, with one tensor in memory at a time; return ``out``.

    Every tensor is checked against its checksum. Raises StorageError naming file and tensor when the stored folder
    is truncated, damaged or of another version, and when ``out`` exists and is not empty.
    """
    files = stored_files(stored, coding)
    companions = [path for path in sorted(stored.iterdir()) if path not in files]
    with _appearing(stored, out, replace=False) as partial:
        _copy(companions, {INDEX + coding.suffix: INDEX}, partial)
        scratch = Scratch()
        for path in files:
            source = read(path, coding)
            with (partial / path.name.removesuffix(coding.suffix)).open("wb") as file:
                file.write(source.prefix)
                for entry in source.entries:
                    file.seek(entry.info.begin)
                    file.write(source.load(entry, scratch).data)
    return out


def tensors(stored: Path, coding: Coding) -> Iterator[tuple[TensorInfo, Bytes]]:
    """Yield every tensor of a stored folder with its original bytes. Raises StorageError as ``restore``."""
    for path in stored_files(stored, coding):
        source = read(path, coding)
        for entry in source.entries:
            yield entry.info, source.load(entry)


def sizes(stored: Path, coding: Coding) -> tuple[int, dict[str, int]]:
    """Return the bytes of the stored weight files, headers included, and those of each tensor by name."""
    files = stored_files(stored, coding)
    tensor_bytes = {entry.info.name: entry.nbytes for path in files for entry in read(path, coding).entries}
    return sum(path.stat().st_size for path in files), tensor_bytes


def holds(folder: Path, coding: Coding) -> bool:
    """Whether a folder holds weight files in this format."""
    return any(folder.glob(f"*.safetensors{coding.suffix}"))


def stored_files(stored: Path, coding: Coding) -> list[Path]:
    """Return a stored folder's weight files.

    Raises StorageError where there is none, a shard of the index is missing, or a link or the index leads out of the
    folder.
    """
    suffix = coding.suffix
    index = stored / (INDEX + suffix)
    try:
        check_contained(stored)
        listed = set(shard_names(index)) if index.is_file() else set()
    except ModelError as error:
        raise StorageError(error.message, error.hint) from error
    files = sorted(stored.glob(f"*.safetensors{suffix}"))
    if not files:
        raise StorageError(f"{stored}: no *.safetensors{suffix} file", "name a folder made by `sparsebench pack`")
    if missing := listed - {path.name.removesuffix(suffix) for path in files}:
        raise StorageError(f"{stored}: {min(missing)}{suffix} is missing", "copy the whole folder again")
    return files


@contextmanager
def _appearing(source: Path, out: Path, replace: bool) -> Iterator[Path]:
    """Yield a folder under a temporary name; it becomes ``out`` on success and is removed on failure.

    Raises StorageError where ``out`` is in ``source``, or is not empty and must not be replaced.
    """
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise StorageError(f"{out}: lies in {source}, which is read", "choose a folder elsewhere")
    if out.exists() and not replace and (out.is_file() or any(out.iterdir())):
        raise StorageError(f"{out}: exists and is not empty", "choose a new folder, or remove it first")
    partial = new_partial(out)
    try:
        yield partial
        rename_whole(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(paths: Iterable[Path], new_names: Mapping[str, str], folder: Path) -> None:
    """Copy all but hidden files, under their new names if they have one, without code, and note what was left out."""
    left_out: list[str] = []
    for path in paths:
        if not path.name.startswith("."):
            left_out += copy_companion(path, folder / new_names.get(path.name, path.name))
    record_left_out(folder, left_out)
