"""Reads a manifest, reports all its problems at once, and keeps the position of every value in the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from sparsebench import bounded
from sparsebench.manifest.checks import Checks, FamilyOf, contradiction, cross_checks, siblings
from sparsebench.manifest.explain import explain
from sparsebench.manifest.nodes import At, Positions, read
from sparsebench.manifest.problems import MOST, ManifestError, Problem, did_you_mean
from sparsebench.manifest.schema import Manifest

_LONGEST = 200
"""The most bytes of an experiment's name: a system's limit for a file's name is 255, and our files' names say more."""


@dataclass(frozen=True)
class LoadedManifest:
    """A valid manifest, the file it came from, and the positions of its values in that file."""

    manifest: Manifest
    path: Path
    positions: Positions = field(repr=False)

    @property
    def name(self) -> str:
        """The experiment's name: the manifest's own, else the file's."""
        return self.manifest.name or self.path.stem

    @property
    def folder(self) -> Path:
        """The folder that relative ``path:`` sources start from."""
        return self.path.parent

    def problem(self, at: At, message: str, expected: str = "", hint: str = "") -> Problem:
        """Return a problem found later, at a value such as ``("models", 0, "source")``, to raise in a ManifestError."""
        return self.positions.problem(at, message, expected, hint)


def load(path: Path, checks: Checks | None = None) -> LoadedManifest:
    """Load the manifest at ``path``; ``checks`` adds what later packages know.

    Raises ManifestError with every problem found.
    """
    try:
        with path.open("rb") as file:
            content = file.read(bounded.MANIFEST + 1)
    except OSError as error:
        hint = did_you_mean(path.name, siblings(path)) or "`sparsebench init` writes a starter manifest"
        _fail(str(path), (error.strerror or str(error)).lower(), hint, error)
    if len(content) > bounded.MANIFEST:
        _fail(str(path), f"more than {bounded.MANIFEST // 1000:,} kB, the limit for a manifest", "split it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _fail(str(path), f"not UTF-8 text (byte {error.start})", "save the file as UTF-8", error)
    return load_text(text, str(path), checks)


def load_text(text: str, name: str, checks: Checks | None = None) -> LoadedManifest:
    """Load the manifest in ``text``; ``name`` is the file that it is from, or that it will be written to.

    Raises ManifestError with every problem found.
    """
    data, positions, problems = read(text, name)
    if data is None and not problems:
        _fail(name, "the manifest is empty", "`sparsebench init` writes a starter manifest")
    if data is None:
        raise ManifestError(problems)
    path = Path(name)
    found: Iterable[Problem] = cross_checks(data, positions, path.parent, checks)
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        found = chain(explain(error, data, positions), found)
    # What could not be read as YAML was replaced by null: problems with that null would only be echoes.
    broken = {(problem.line, problem.column) for problem in problems}
    problems += [problem for problem in islice(found, MOST) if (problem.line, problem.column) not in broken]
    if problems:
        raise ManifestError(problems)
    loaded = LoadedManifest(manifest, path, positions)
    # Record files carry the name. An argument from a shell that is not UTF-8 contains lone surrogates.
    if len(loaded.name.encode(errors="replace")) > _LONGEST or not loaded.name.isprintable():
        _fail(
            name,
            "the experiment's name is too long or has unprintable characters",
            f"add `name:`, or rename the file (at most {_LONGEST} bytes)",
        )
    return loaded


def check_family(
    loaded: LoadedManifest, configs: Mapping[str, Mapping[str, Any]], family_of: FamilyOf
) -> tuple[Problem, ...]:
    """Report models whose ``family`` contradicts their config.json; ``configs`` has those by model name."""
    found = (
        contradiction(
            loaded.positions, ("models", index), model.family, configs[model.name], "its config.json", family_of
        )
        for index, model in enumerate(loaded.manifest.models)
        if model.name in configs
    )
    return tuple(problem for problem in found if problem)


def _fail(path: str, message: str, hint: str, cause: Exception | None = None) -> NoReturn:
    raise ManifestError([Problem(path, 0, 0, "", message, "", hint)]) from cause
