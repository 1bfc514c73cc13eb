"""Reads a manifest with the position of every value, and validates its shape."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from sparsebench import bounded
from sparsebench.errors import Refusal, SparsebenchError
from sparsebench.manifest.explain import explain
from sparsebench.manifest.nodes import KeyPath, Positions, read_yaml
from sparsebench.manifest.problems import ManifestError, Problem, did_you_mean
from sparsebench.manifest.schema import Manifest

_MOST_NAME_BYTES = 200
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

    def problem(
        self, at: KeyPath, message: str, expected: str = "", hint: str = "", *, on_key: bool = False
    ) -> Problem:
        """Return a problem found later, at a value such as ``("models", 0, "source")``, to raise in a ManifestError."""
        return self.positions.problem(at, message, expected, hint, on_key=on_key)

    def refused(self, at: KeyPath, refusal: Refusal, subject: str = "") -> Problem:
        """Return a refusal as a problem with the value at ``at``; its ``subject``, if any, comes first."""
        return self.problem(at, f"{subject}: {refusal.reason}" if subject else refusal.reason, "", refusal.way_out)

    def failed(self, at: KeyPath, error: SparsebenchError) -> Problem:
        """Return an error as a problem with the value at ``at``."""
        return self.problem(at, error.message, "", error.hint or "")


def read_manifest(path: Path) -> LoadedManifest:
    """Return the manifest at ``path``. Raises ManifestError, also for a file that cannot be read as text at all."""
    try:
        with path.open("rb") as file:
            content = file.read(bounded.MANIFEST_BYTES + 1)
    except OSError as error:
        hint = did_you_mean(path.name, names_beside(path)) or "`sparsebench init` writes a starter manifest"
        _fail(str(path), (error.strerror or str(error)).lower(), hint, error)
    if len(content) > bounded.MANIFEST_BYTES:
        _fail(str(path), f"more than {bounded.MANIFEST_BYTES // 1000:,} kB, the limit for a manifest", "split it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _fail(str(path), f"not UTF-8 text (byte {error.start})", "save the file as UTF-8", error)
    return parse_manifest(text, str(path))


def parse_manifest(text: str, name: str) -> LoadedManifest:
    """Return the manifest in ``text``; ``name`` is the file that it is from, or that it will be written to.

    Raises ManifestError with every problem of its YAML and its shape.
    """
    data, positions, problems = read_yaml(text, name)
    if data is None and not problems:
        _fail(name, "the manifest is empty", "`sparsebench init` writes a starter manifest")
    if data is None:
        raise ManifestError(problems)
    # What could not be read as YAML was replaced by null: problems with that null would only be echoes.
    reported_positions = {(problem.line, problem.column) for problem in problems}
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        explained = explain(error, data, positions)
        problems += [problem for problem in explained if (problem.line, problem.column) not in reported_positions]
    if problems:
        raise ManifestError(problems)
    loaded = LoadedManifest(manifest, Path(name), positions)
    if loaded.path.suffix == ".lock":
        _fail(
            name, "a file of this name holds the revisions of a manifest", f"name the manifest {loaded.path.stem}.yaml"
        )
    # Record files carry the name. An argument from a shell that is not UTF-8 contains lone surrogates.
    if len(loaded.name.encode(errors="replace")) > _MOST_NAME_BYTES or not loaded.name.isprintable():
        _fail(
            name,
            "the experiment's name is too long or has unprintable characters",
            f"add `name:`, or rename the file (at most {_MOST_NAME_BYTES} bytes)",
        )
    return loaded


def names_beside(path: Path) -> list[str]:
    """Return the other names in the folder of a path; none where it cannot be read."""
    try:
        return [name for name in os.listdir(path.parent) if name != path.name]
    except (OSError, ValueError):
        return []


def _fail(path: str, message: str, hint: str, cause: Exception | None = None) -> NoReturn:
    raise ManifestError([Problem(path, 0, 0, "", message, "", hint)]) from cause
