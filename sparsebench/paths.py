"""Paths: names that a stranger's files give, writing that follows no link and appears whole, the ledger's path."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sparsebench import bounded
from sparsebench.errors import ModelError, UserError

WEIGHTS, INDEX, PICKLE_INDEX = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json"
DEFAULT_LEDGER = Path("ledger/sparsebench.duckdb")
PARTIAL = ".partial-"
"""A part of the name of every file and folder that is being written, built or removed."""
TEMPORARY = "sparsebench"
"""What the names of our folders among the system's temporary files begin with."""
_PROCESS_ID = re.compile("[0-9]{1,9}")
_DISTRUST = "no genuine model contains this: fetch it again from a source that you trust"


def name_beside(name: object, origin: Path) -> str:
    """Return ``name``, which a model's file ``origin`` gives, if it is the name of a file or folder beside ``origin``.

    Raises ModelError for every other path.
    """
    if not isinstance(name, str) or not name or name[0] == "." or set(name) & set("/\\\0") or _unnameable(name):
        raise ModelError(f"{origin}: {name!r} is not the name of a file beside it", _DISTRUST)
    return name


def _unnameable(name: str) -> bool:
    """Return whether no file can have this name: it holds half of a character, or is longer than systems allow."""
    return any("\ud800" <= char <= "\udfff" for char in name) or len(os.fsencode(name)) > 255


def check_contained(folder: Path) -> None:
    """Raise ModelError, naming the file, where something in a model's folder leads out of it.

    That is a link, except one in the hub's cache to its own blobs, or a name in an index of weights or tokenizers.
    Links to folders, which can also lead in a circle, and devices are refused wherever they lead. Hidden folders at the
    top are not looked into.
    """
    resolved_folder = folder.resolve()
    allowed_folders = [resolved_folder]
    if resolved_folder.parent.name == "snapshots" and resolved_folder.parents[1].name.startswith("models--"):
        allowed_folders.append(resolved_folder.parents[1] / "blobs")
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name[0] != "."]
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink():
                if not path.is_file() or not any(path.resolve().is_relative_to(allowed) for allowed in allowed_folders):
                    reason = f"a link to {os.readlink(path)}, which is no file of the model"
                    raise ModelError(f"{path}: {reason}", "put a copy in its place, if you trust what it points to")
            elif not path.is_file() and not path.is_dir():
                raise ModelError(f"{path}: neither a file nor a folder", _DISTRUST)
    for index in (folder / INDEX, *folder.glob(f"{INDEX}.*"), folder / PICKLE_INDEX):
        if index.is_file():
            shard_names(index)
    settings = folder / "tokenizer_config.json"
    names = bounded.read_object(settings).get("fast_tokenizer_files") if settings.is_file() else None
    for name in names if isinstance(names, list) else ():
        name_beside(name, settings)


def shard_names(index: Path) -> tuple[str, ...]:
    """Return the sorted names of the weight files that an index lists.

    Raises ModelError where the file is no index, or a name leads out of its folder.
    """
    weight_map = bounded.read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index}: no `weight_map`", "fetch the file again")
    return tuple(sorted({name_beside(name, index) for name in weight_map.values()}))


def refuse_link(path: Path) -> Path:
    """Return ``path``, which is going to be written to or in. Raises UserError where it is a link."""
    if path.is_symlink():
        raise UserError(
            f"{path}: a link to {os.readlink(path)}, and nothing is written through links",
            "remove it, or name what it points to",
        )
    return path


def check_writable(path: Path, folder: bool) -> Path:
    """Return ``path``, a file or a ``folder`` that work is going to write; missing folders above it are no obstacle.

    Raises UserError where it is the other of the two, where a file stands above it, where nothing can have such a name,
    or where the system lets nobody write.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: {reason}", "name another path") from error
    if folder and path.exists() and not path.is_dir():
        raise UserError(f"{path}: a file, not a folder", "name another folder")
    if not folder and path.is_dir():
        raise UserError(f"{path}: a folder, not a file", "name a file in it")
    if not folder or not path.exists():
        refuse_link(path)
    nearest = next(folder_above for folder_above in (path, *path.absolute().parents) if folder_above.exists())
    if nearest != path and not nearest.is_dir():
        raise UserError(f"{path}: {nearest} is a file, not a folder", "name another path")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{path}: {nearest} cannot be written", "name another path, or make it yours")
    return path


def check_new_folder(folder: Path) -> Path:
    """Return a ``folder`` that work is going to make. Raises UserError where it is there, or cannot be made."""
    if check_writable(folder, folder=True).exists():
        raise UserError(f"{folder} exists", "name another folder, or remove it")
    return folder


def create(path: Path, mode: str = "w") -> IO[Any]:
    """Open a file for writing, text as UTF-8. Raises UserError where the path is a link."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    try:
        return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=opener)
    except OSError as error:
        if error.errno == errno.ELOOP:
            refuse_link(path)
        raise


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it. Raises OSError for what cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder and below, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def partial_of(path: Path, suffix: str = "") -> Path:
    """Return the name in the same folder under which this process of this machine writes or builds ``path``."""
    return path.with_name(f"{path.name}{_partial_mark()}{os.getpid()}{suffix}")


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a new folder of this process among the system's temporary files."""
    prefix = partial_of(Path(TEMPORARY), "-").name
    return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)


def leftovers(folder: Path, name: str = "*") -> Iterator[Path]:
    """Yield what dead processes of this user and machine have left in ``folder`` of the path ``name``, or of any."""
    import psutil

    for leftover in folder.glob((name if name == "*" else glob.escape(name)) + glob.escape(_partial_mark()) + "*"):
        process = leftover.name.rpartition(_partial_mark())[2].partition("-")[0]
        if _PROCESS_ID.fullmatch(process) and not psutil.pid_exists(int(process)):
            with suppress(FileNotFoundError):
                if os.lstat(leftover).st_uid == os.getuid():
                    yield leftover


def sweep(folder: Path, name: str = "*") -> None:
    """Remove from ``folder`` what dead processes have left of the path ``name``, or of any (``leftovers``)."""
    for leftover in leftovers(folder, name):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sweep_temporary() -> None:
    """Remove what dead processes have left among the system's temporary files."""
    sweep(Path(tempfile.gettempdir()), TEMPORARY)


def _partial_mark() -> str:
    return f"{PARTIAL}{socket.gethostname()}+"  # no host name has a "+": `node` is not `node-5`


def write_whole(path: Path, text: str) -> None:
    """Write a file beside, flush it to disk, rename it: a reader sees the old file or the new one, never a part."""
    partial = partial_of(path, f"-{secrets.token_hex(3)}")  # threads may write the same
    file = create(partial)  # made by `open`, so that whoever may read the folder may read the file
    try:
        with file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # there only where writing failed


def ledger_path(from_option: Path | None, from_manifest: str | None = None) -> Path:
    """Return the ledger's path: the command line's, else the manifest's, else $SPARSEBENCH_LEDGER, else the default."""
    if from_option:
        return from_option
    if from_manifest:
        return home_path(from_manifest)
    return Path(os.environ.get("SPARSEBENCH_LEDGER") or DEFAULT_LEDGER)


def home_path(text: str) -> Path:
    """Return a manifest's path with ``~`` expanded as by a shell. Raises UserError for the home of an unknown user."""
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{text}: there is no user {expanded.split('/')[0][1:]}", "name the folder itself")
    return Path(expanded)
