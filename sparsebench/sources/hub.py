"""``hf:``: a model, or one file of a data set, from the hub, fetched by huggingface_hub under its own settings.

HF_HOME, HF_ENDPOINT (a mirror), HF_HUB_OFFLINE and HF_TOKEN have their usual meaning. Only one set of weights is
fetched: safetensors if there are any, else PyTorch's; never Flax, TensorFlow or ONNX.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, errors, hf_hub_download, snapshot_download
from huggingface_hub.file_download import repo_folder_name

from sparsebench import bounded
from sparsebench.errors import SourceError, redacted
from sparsebench.manifest.problems import did_you_mean
from sparsebench.paths import INDEX, PICKLE_INDEX, WEIGHTS, shard_names
from sparsebench.sources.notation import Source

T = TypeVar("T")

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_TIMEOUT = 15.0
_COMPANIONS = "*.json *.txt *.model *.spm *.jinja *.tiktoken [0-9]_*/*.json [0-9]_*/*.safetensors".split()
_UNWANTED = ("onnx/*", "openvino/*", "*.index.fp*.json", "*fp16*", "*fp32*", "consolidated*", "flax*", "tf_model*")
_SAFETENSORS = (WEIGHTS, INDEX)
_PYTORCH = ("pytorch_model.bin", PICKLE_INDEX)


class HubUnreachableError(SourceError):
    """No answer from the hub: the network, a firewall, the offline setting, or an incomplete copy in its cache."""


def commit(source: Source, offline: bool = False) -> str:
    """Return the commit (40 hexadecimal digits) that the revision names; a commit is returned without asking the hub.

    When the hub cannot be reached, return the commit that its cache remembers for the revision. Raises SourceError.
    """
    if _COMMIT.match(source.revision):
        return source.revision
    try:
        return str(_repo_info(source, source.revision, offline).sha)
    except HubUnreachableError:
        if remembered := _cached_commit(source):
            return remembered
        raise


def read_config(source: Source, offline: bool = False) -> dict[str, Any] | None:
    """Read config.json alone; None when offline and not cached, and for a data set. Raises SourceError."""
    if source.file:
        return None
    try:
        path = _file(source, "config.json", commit(source, offline), offline)
    except HubUnreachableError:
        if offline or constants.HF_HUB_OFFLINE:
            return None
        raise
    return bounded.read_object(path, SourceError)


def size(source: Source, offline: bool = False) -> int | None:
    """Return the bytes that ``fetch`` would still download; None when the hub cannot be reached or does not say."""
    try:
        revision = commit(source, offline)
        folder = _snapshot(source, revision)
        if (folder / source.file).is_file() if source.file else missing_weights(folder) is None:
            return 0
        info = _repo_info(source, source.revision, offline, files_metadata=True)
    except HubUnreachableError:
        return None
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    names = [source.file] if source.file else wanted_files(list(sizes))
    missing: list[Any] = [sizes.get(name) for name in names if not (folder / name).is_file()]
    return None if None in missing else sum(missing)


def fetch(source: Source, offline: bool = False) -> Path:
    """Return the hub cache's folder with the complete model at its commit, or a data set's file. Raises SourceError."""
    revision = commit(source, offline)
    path = (_data_file if source.file else _folder)(source, revision, offline)
    if revision not in (source.revision, _cached_commit(source)):
        # The hub's client notes a branch's commit only when asked for the branch. Offline we have only this note.
        note = _cache_folder(source) / "refs" / source.revision
        with suppress(OSError):  # a read-only cache
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(revision)
    return path


def wanted_files(names: list[str]) -> list[str]:
    """Return the files of a repository that make up the model: configuration, tokenizer and one set of weights."""
    weights = "model*.safetensors" if any(name in names for name in _SAFETENSORS) else "pytorch_model*.bin"
    patterns = (*_COMPANIONS, weights)

    def wanted(name: str) -> bool:
        if any(fnmatch(name, pattern) for pattern in _UNWANTED):
            return False
        return any(fnmatch(name, pattern) and ("/" in pattern or "/" not in name) for pattern in patterns)

    return list(filter(wanted, names))


def missing_weights(folder: Path) -> str | None:
    """Return the first weight file (or config.json) that the folder lacks, None if there is none. Raises ModelError."""
    if not (folder / "config.json").is_file():
        return "config.json"
    for single, index in (_SAFETENSORS, _PYTORCH):
        if (folder / single).is_file():
            return None
        if (folder / index).is_file():
            return next((name for name in shard_names(folder / index) if not (folder / name).is_file()), None)
    return _SAFETENSORS[0]


def _folder(source: Source, revision: str, offline: bool) -> Path:
    try:
        folder = _download(source, revision, offline)
    except HubUnreachableError:
        folder = _snapshot(source, revision)
        if not folder.is_dir() or (missing_weights(folder) and not (offline or constants.HF_HUB_OFFLINE)):
            raise
    if missing := missing_weights(folder):
        raise _unreachable(source, f"the hub's cache holds only part of it ({missing} is missing)")
    return folder


def _download(source: Source, revision: str, offline: bool) -> Path:
    names = wanted_files([sibling.rfilename for sibling in _repo_info(source, revision, offline).siblings or []])
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        problem = f"{source.text}: the repository has neither safetensors nor PyTorch weights"
        raise SourceError(problem, "name a repository of Hugging Face format, or convert it and use path:")
    # An exact commit: if the branch moves during the download, files of two models cannot mix.
    return Path(_ask(source, lambda: snapshot_download(source.repo, revision=revision, allow_patterns=names)))


def _data_file(source: Source, revision: str, offline: bool) -> Path:
    path = _snapshot(source, revision) / source.file
    if path.is_file():
        return path
    names = [sibling.rfilename for sibling in _repo_info(source, source.revision, offline).siblings or []]
    if source.file not in names:
        hint = did_you_mean(source.file, names) or f"it holds {', '.join(names[:5]) or 'no file'}"
        raise SourceError(f"{source.text}: the data set has no file {source.file}", hint)
    return _file(source, source.file, revision, offline)


def _file(source: Source, name: str, revision: str, offline: bool) -> Path:
    """Return one file at a commit, which is not asked for if the cache holds it."""
    options: dict[str, Any] = {"repo_type": _repo_type(source), "revision": revision, "etag_timeout": _TIMEOUT}
    return Path(_ask(source, lambda: hf_hub_download(source.repo, name, local_files_only=offline, **options)))


def _repo_info(source: Source, revision: str, offline: bool, files_metadata: bool = False) -> Any:
    if offline or constants.HF_HUB_OFFLINE:
        raise _unreachable(source, "offline, and not in the hub's cache")
    options: dict[str, Any] = {"repo_type": _repo_type(source), "timeout": _TIMEOUT, "files_metadata": files_metadata}
    return _ask(source, lambda: HfApi().repo_info(source.repo, revision=revision, **options))


def _ask(source: Source, question: Callable[[], T]) -> T:
    """Return the hub's answer, or translate the client's error into a SourceError."""
    place, kind = f"{source.text} at {constants.ENDPOINT}", "data set" if source.file else "model"
    try:
        return question()
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{'datasets/' if source.file else ''}{source.repo}"
        hint = f"accept its licence at {page}, then set HF_TOKEN or run `hf auth login`"
        raise SourceError(f"{place}: the {kind} is gated", hint) from error
    except errors.RevisionNotFoundError as error:
        problem = f"{place}: there is no revision {source.revision}"
        raise SourceError(problem, "name a branch, tag or commit it has") from error
    except errors.RepositoryNotFoundError as error:
        problem = f"{place}: no such {kind}, or a private one"
        raise SourceError(problem, "check the name; for a private one set HF_TOKEN") from error
    except errors.LocalEntryNotFoundError as error:
        # The client hides the hub's own answer, such as 403 or 429, behind advice about the connection.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _unreachable(source, _reason(cause)) from error
    except (errors.EntryNotFoundError, errors.HFValidationError) as error:
        raise SourceError(f"{place}: {_reason(error)}", "a hub source is hf:ORG/NAME@REVISION") from error
    # The hub's client re-exports its HTTP library's base error: refused, reset, timed out, or a status such as 503.
    # Xet, the store behind the hub, raises RuntimeError.
    except (errors.HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:
        raise _unreachable(source, _reason(error)) from error


def _unreachable(source: Source, why: str) -> HubUnreachableError:
    argument = f"{source.repo} {source.file} --repo-type dataset" if source.file else source.repo
    rehearsed = "rehearse with random weights of the same architecture: --rehearse"
    instead = "name a local file: path:" if source.file else rehearsed
    return HubUnreachableError(
        f"{source.text} cannot be fetched from {constants.ENDPOINT}: {why}",
        "connect, or set HF_ENDPOINT to a mirror, or fill the hub's cache on a connected machine "
        f"(`hf download {argument} --revision {source.revision}`, then copy it to {constants.HF_HUB_CACHE}); "
        f"or {instead}",
    )


def _reason(error: Exception) -> str:
    # Redact before cutting: half an address would not be recognised as one.
    return redacted(" ".join(str(error).split()))[:200] or type(error).__name__


def _repo_type(source: Source) -> str:
    return "dataset" if source.file else "model"


def _cache_folder(source: Source) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source.repo, repo_type=_repo_type(source))


def _snapshot(source: Source, revision: str) -> Path:
    """Return the folder in the hub's cache for a commit, which may not be there."""
    return _cache_folder(source) / "snapshots" / revision


def _cached_commit(source: Source) -> str | None:
    """Return the commit that the hub's cache last saw for the revision, else None."""
    path = _cache_folder(source) / "refs" / source.revision
    return path.read_text().strip() if path.is_file() else None
