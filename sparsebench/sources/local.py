"""``path:``: a Hugging Face folder, a GGUF file or a data file of the user's own."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError, SourceError
from sparsebench.paths import check
from sparsebench.sources.cache import Cache
from sparsebench.sources.notation import Source


def existing(source: Source) -> Path:
    """The path, if it is there. Raises SourceError that names the nearest thing that is, or what leads out of the folder."""
    path = Path(source.location)
    if path.exists():
        try:
            check(path)
        except ModelError as error:
            raise SourceError(error.message, error.hint) from error
        return path
    parent = next(folder for folder in path.parents if folder.exists())
    missing = path.relative_to(parent).parts[0]
    close = difflib.get_close_matches(
        missing, [entry.name for entry in parent.iterdir()] if parent.is_dir() else [], n=1
    )
    hint = f"did you mean {parent / close[0]}?" if close else f"the nearest folder that exists is {parent}"
    raise SourceError(f"{source.text}: no such file or folder", hint)


def fingerprint(source: Source, cache: Cache) -> str:
    """``sha256:`` and a hash over the names and contents of all files, hidden ones and Markdown left out."""
    path = existing(source)
    if path.is_file():
        return f"sha256:{cache.sha256(path)}"
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and file.suffix.lower() != ".md" and not any(step.startswith(".") for step in name.parts):
            whole.update(f"{name.as_posix()}\0{cache.sha256(file)}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def read_config(source: Source) -> dict[str, Any] | None:
    """The folder's config.json; None for a file, or a folder without one. Raises SourceError when it is not JSON."""
    path = existing(source) / "config.json"
    hint = "copy the model's config.json again"
    return bounded.read_object(path, SourceError, hint) if path.is_file() else None
