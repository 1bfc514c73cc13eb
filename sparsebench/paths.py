"""Checks that a stranger's files name only files of their own folder; writing that follows no link; the ledger's path."""

from __future__ import annotations

import errno
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sparsebench import bounded
from sparsebench.errors import ModelError, UserError

WEIGHTS, INDEX, PICKLE_INDEX = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json"
DEFAULT_LEDGER = Path("ledger/sparsebench.duckdb")
DRAWN, WRITING_SECONDS = 6, 5.0
"""The random digits in the name of a file that is being written, and how long writing takes at most."""
_DISTRUST = "no genuine model contains this: fetch it again from a source that you trust"


def plain(name: object, origin: Path) -> str:
    """Return ``name``, which a model's file ``origin`` gives, if it is the name of a file or folder beside ``origin``.

    Raises ModelError for every other path.
    """
    if not isinstance(name, str) or not name or name[0] == "." or set(name) & set("/\\\0") or _unnameable(name):
        raise ModelError(f"{origin}: {name!r} is not the name of a file beside it", _DISTRUST)
    return name


def _unnameable(name: str) -> bool:
    """Return whether no file can have this name: it holds half of a character, or is longer than systems allow."""
    return any("\ud800" <= char <= "\udfff" for char in name) or len(os.fsencode(name)) > 255


def check(folder: Path) -> None:
    """Raise ModelError, naming the file, where something in a model's folder leads out of it.

    That is a link, except one in the hub's cache to its own blobs, or a name in an index of weights or tokenizers.
    Links to folders, which can also lead in a circle, and devices are refused wherever they lead. Hidden folders at the
    top are not looked into.
    """
    home = folder.resolve()
    inside = [home]
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        inside.append(home.parents[1] / "blobs")
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name[0] != "."]
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink():
                if not path.is_file() or not any(path.resolve().is_relative_to(allowed) for allowed in inside):
                    where = f"a link to {os.readlink(path)}, which is no file of the model"
                    raise ModelError(f"{path}: {where}", "put a copy in its place, if you trust what it points to")
            elif not path.is_file() and not path.is_dir():
                raise ModelError(f"{path}: neither a file nor a folder", _DISTRUST)
    for index in (folder / INDEX, *folder.glob(f"{INDEX}.*"), folder / PICKLE_INDEX):
        if index.is_file():
            shards(index)
    settings = folder / "tokenizer_config.json"
    names = bounded.read_object(settings).get("fast_tokenizer_files") if settings.is_file() else None
    for name in names if isinstance(names, list) else ():
        plain(name, settings)


def shards(index: Path) -> tuple[str, ...]:
    """Return the sorted names of the weight files that an index lists.

    Raises ModelError where the file is no index, or a name leads out of its folder.
    """
    named = bounded.read_object(index).get("weight_map")
    if not isinstance(named, dict):
        raise ModelError(f"{index}: no `weight_map`", "fetch the file again")
    return tuple(sorted({plain(name, index) for name in named.values()}))


def unlinked(path: Path) -> Path:
    """Return ``path``, which is going to be written to or in. Raises UserError where it is a link."""
    if path.is_symlink():
        raise UserError(
            f"{path}: a link to {os.readlink(path)}, and nothing is written through links",
            "remove it, or name what it points to",
        )
    return path


def writable(path: Path, folder: bool) -> Path:
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
        unlinked(path)
    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if nearest != path and not nearest.is_dir():
        raise UserError(f"{path}: {nearest} is a file, not a folder", "name another path")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{path}: {nearest} cannot be written", "name another path, or make it yours")
    return path


def vacant(folder: Path) -> Path:
    """Return a ``folder`` that work is going to make. Raises UserError where it is there, or cannot be made."""
    if writable(folder, folder=True).exists():
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
            unlinked(path)
        raise


def partial_of(path: Path) -> Path:
    """Return a hidden name in the same folder, ending in a number, that no other writer has."""
    return path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**DRAWN):0{DRAWN}}")


def sweep_partial(folder: Path) -> None:
    """Remove from a folder what processes that are dead for some seconds have left of files that they wrote whole."""
    import psutil

    for partial in folder.glob(".*.*"):
        number = partial.name.rpartition(".")[2]
        if not number.isdigit() or len(number) <= DRAWN or psutil.pid_exists(int(number[:-DRAWN])):
            continue
        with suppress(FileNotFoundError):  # a process of another machine may have renamed it meanwhile
            if time.time() - partial.stat().st_mtime > WRITING_SECONDS:
                partial.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a file beside, flush it to disk, rename it: a reader sees the old file or the new one, never a part."""
    partial = partial_of(path)
    file = create(partial)  # made by `open`, so that whoever may read the folder may read the file
    try:
        with file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # there only where writing failed


def ledger_path(option: Path | None, manifest: str | None = None) -> Path:
    """Return the ledger's path: the command line's, else the manifest's, else $SPARSEBENCH_LEDGER, else the default."""
    if option:
        return option
    if manifest:
        return home_path(manifest)
    return Path(os.environ.get("SPARSEBENCH_LEDGER") or DEFAULT_LEDGER)


def home_path(text: str) -> Path:
    """Return a manifest's path with ``~`` expanded as by a shell. Raises UserError for the home of an unknown user."""
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{text}: there is no user {expanded.split('/')[0][1:]}", "name the folder itself")
    return Path(expanded)
