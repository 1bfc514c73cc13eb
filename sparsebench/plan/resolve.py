"""Resolves what a manifest names: every model, text, file, teacher and data set, to where it is and what it holds.

Each becomes a canonical source with a fingerprint, in one place. Nothing is judged here: ``plan/fit`` says what does not
fit together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from sparsebench import benchmarks, bounded, sources
from sparsebench.benchmarks.own import content, default_name
from sparsebench.errors import SourceError, SparsebenchError, UserError
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.names import FAMILIES, LM_EVAL
from sparsebench.manifest.nodes import KeyPath
from sparsebench.manifest.problems import Problem
from sparsebench.manifest.recipes import steps_of, verb_and_name
from sparsebench.manifest.schema import (
    Manifest,
    ManifestBenchmarks,
    ManifestCalibration,
    ManifestModel,
    ManifestRuntime,
    ManifestTask,
    as_list,
)
from sparsebench.paths import refuse_link
from sparsebench.plan.expand import with_defaults
from sparsebench.plan.fingerprint import digest
from sparsebench.plan.stages import own_data_of
from sparsebench.sources.cache import write_json
from sparsebench.sources.reference import Reference
from sparsebench.sources.text import each_text
from sparsebench.steps.calibration import DEFAULT
from sparsebench.steps.recover.settings import DENSE
from sparsebench.steps.registry import kinds, with_text


class Lock:
    """``MANIFEST.lock``: what moving names of the hub (``@main``) meant when they were first resolved.

    Raises UserError for a file that is not such a list, or a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = refuse_link(path)
        hint = "remove it: names such as @main are then resolved anew"
        self.commits: dict[str, str] = bounded.read_object(path, UserError, hint) if path.is_file() else {}

    def pin(self, source: sources.Source, cache: sources.Cache) -> sources.Source:
        """Return a hub source at the commit that its revision meant when it was first resolved; others do not move.

        A commit that the file does not have yet is written into it. Raises SourceError for ``random``, which only a
        model's weights can be.
        """
        if source.kind == "random":
            raise SourceError("random: untrained weights, with nothing to read or learn from", "name another source")
        if source.kind != "hf":
            return source
        if source.text not in self.commits:
            commit = sources.fingerprint(source, cache)
            if commit == source.revision:
                return source
            self.commits[source.text] = commit
            write_json(self.path, dict(sorted(self.commits.items())), indent=1)
        return sources.parse(source.text.replace(f"@{source.revision}", f"@{self.commits[source.text]}", 1))


@dataclass(frozen=True)
class NamedSource:
    """A text or a teacher of a step: where the manifest names it (else the step), in which words, and its source."""

    at: KeyPath
    written: str
    source: sources.Source


@dataclass
class Resolved:
    """A manifest in which every source is canonical, with what was learned on the way.

    ``revisions`` and ``configs`` have each model's fingerprint and config.json by its name. ``calibration`` is the
    fingerprint of the calibration text, ``documents`` about how many documents each task over the user's own data has.
    ``planned`` says how the plan names a file, text or teacher, by its setting and by how the manifest names it.
    """

    manifest: Manifest
    revisions: dict[str, str] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: str = ""
    documents: dict[str, int] = field(default_factory=dict)
    planned: dict[tuple[str, str], str] = field(default_factory=dict)
    texts: list[NamedSource] = field(default_factory=list)
    teachers: list[NamedSource] = field(default_factory=list)


class Resolver:
    """Resolves the names of one manifest; what cannot be resolved is gathered in ``problems``, each at its line."""

    def __init__(self, loaded: LoadedManifest, cache: sources.Cache) -> None:
        self.loaded, self.cache = loaded, cache
        self.lock = Lock(loaded.path.with_suffix(".lock"))
        self.problems: list[Problem] = []

    def resolve(self, manifest: Manifest, reads_calibration: bool) -> Resolved:
        """Return ``manifest`` resolved, as far as ``problems`` allow."""
        resolved = Resolved(manifest)
        models = self._models(manifest, resolved)
        calibration = self._calibration(manifest, resolved, reads_calibration)
        variants = [self._entry(resolved, index, entry) for index, entry in enumerate(manifest.variants)]
        tasks = self.tasks(manifest, resolved.documents)
        update = {
            "models": models,
            "calibration": calibration,
            "variants": variants,
            "benchmarks": tasks.model_copy(
                update={family: [_selecting(task, resolved.planned) for task in listed] for family, listed in tasks}
            ),
            "runtime": [_selecting(block, resolved.planned) for block in manifest.runtime or []],
        }
        resolved.manifest = manifest.model_copy(update=update)
        return resolved

    def tasks(self, manifest: Manifest, documents: dict[str, int]) -> ManifestBenchmarks:
        """Return the manifest's tasks, those over the user's own data with a name and a ``Reference`` to these data.

        ``documents`` receives about how many documents such a task has. A problem is data that cannot be fetched or
        lack what is asked for, or a name that another task has.
        """
        names: dict[str, benchmarks.OwnData] = {}
        by_family: dict[str, list[ManifestTask]] = {}
        for family in FAMILIES:
            tasks = [
                self._task(("benchmarks", family, index), task, names, documents)
                for index, task in enumerate(manifest.benchmarks.of(family))
            ]
            by_family[family.replace("-", "_")] = tasks
        return manifest.benchmarks.model_copy(update=by_family)

    def _source(self, at: KeyPath, text: Any) -> sources.Source | None:
        """Return what is written at ``at`` as a source, at its commit; None, with a problem, where there is none."""
        try:
            if text is None:
                raise SourceError("an empty item in a list of texts", "name each of them")
            return self.lock.pin(sources.parse(text, self.loaded.folder), self.cache)
        except SourceError as error:
            self._report(at, error)
            return None

    def _fingerprint(self, at: KeyPath, source: sources.Source) -> str:
        """Return the hash of what a source holds; empty, with a problem, where it cannot be found."""
        try:
            return sources.fingerprint(source, self.cache)
        except SourceError as error:
            self._report(at, error)
            return ""

    def _report(self, at: KeyPath, error: SparsebenchError) -> None:
        self.problems.append(self.loaded.failed(at, error))

    def _models(self, manifest: Manifest, resolved: Resolved) -> list[ManifestModel]:
        models: list[ManifestModel] = []
        for index, model in enumerate(manifest.models):
            at = ("models", index, "source")
            if sources.parse(model.source, self.loaded.folder).kind == "random":
                resolved.revisions[model.name] = "random"
                resolved.configs[model.name] = model.architecture or {}
                models.append(model.model_copy(update={"source": "random"}))
            elif source := self._source(at, model.source):
                if problem := _no_model(source):
                    self._report(at, problem)
                    continue
                models.append(model.model_copy(update={"source": source.text}))
                resolved.revisions[model.name] = self._fingerprint(at, source)
                try:
                    if config := sources.read_config(source, self.cache):
                        resolved.configs[model.name] = config
                except SourceError as error:
                    self._report(at, error)
        return models

    def _calibration(self, manifest: Manifest, resolved: Resolved, is_read: bool) -> ManifestCalibration:
        """Return the calibration with its source resolved; its fingerprint is taken only where the text ``is_read``."""
        calibration, at = manifest.calibration, ("calibration", "source")
        text = calibration.source or DEFAULT.source
        source = sources.parse(text, self.loaded.folder)
        if is_read:
            pinned = self._source(at, text)
            if pinned is None:
                return calibration
            source = pinned
            resolved.calibration = "!".join(filter(None, (self._fingerprint(at, source), source.file)))
            resolved.texts.append(NamedSource(at, text, source))
            self._calibration_columns(manifest, source)
        return calibration.model_copy(update={"source": source.text}) if calibration.source else calibration

    def _calibration_columns(self, manifest: Manifest, source: sources.Source) -> None:
        """Report a local calibration text that lacks the columns that the manifest names, or any text."""
        written = manifest.calibration
        is_paired = any(model.family == "encoder-decoder" for model in manifest.models)
        calibration = with_defaults(written, manifest.seed)
        if is_paired and calibration.target and not calibration.field:
            problem = SourceError("`target` without `field`", "`field` names what the encoder reads")
            self._report(("calibration", "target"), problem)
            return
        keys = ("field", "target") if is_paired else ("field",)
        named = next((key for key in keys if getattr(written, key)), "source")
        self._columns(("calibration", named), source, [getattr(calibration, key) for key in keys])

    def _columns(self, at: KeyPath, source: sources.Source, columns: Sequence[str | None]) -> None:
        """Report a local text that lacks some of the ``columns`` that are named, or any text."""
        path = Path(source.location)
        if source.kind != "path" or not path.is_file():
            return
        try:
            if next(each_text(path, *filter(None, columns)), None) is None:
                raise SourceError(f"{path}: it holds no text", "name a file with text")
        except SourceError as error:
            self._report(at, error)

    def _entry(self, resolved: Resolved, index: int, entry: Any) -> Any:
        """Return an entry of ``variants`` with references in its steps; steps that read a text and name none get one."""
        steps = [self._step(resolved, at, step) for at, step in steps_of(index, entry)]
        return steps if isinstance(entry, list) else steps[0]

    def _step(self, resolved: Resolved, at: KeyPath, step: Mapping[str, Any]) -> dict[str, Any]:
        manifest = resolved.manifest
        calibration = with_defaults(manifest.calibration, manifest.seed)
        default_source = manifest.calibration.source or DEFAULT.source
        settings_written = with_text(step, default_source, (calibration.field, calibration.target))
        verb, name = verb_and_name(step, kinds())
        settings = kinds()[verb].classes()[name]
        resolve_each = {
            **dict.fromkeys(settings.text_keys, self._text),
            **dict.fromkeys(settings.file_keys, self._file),
            **dict.fromkeys(settings.teacher_keys, self._teacher),
        }

        def reference(key: str, at: KeyPath, text: Any) -> Any:
            if isinstance(text, list):
                return [reference(key, (*at, number), item) for number, item in enumerate(text)]
            resolved_name = resolve_each[key](at, text, resolved)
            if key in step and isinstance(text, str):
                resolved.planned[key, text] = resolved_name
            return resolved_name

        for key in resolve_each:
            if key in settings_written:
                texts_before = len(resolved.texts)
                settings_written[key] = reference(key, (*at, key) if key in step else at, settings_written[key])
                column_keys = settings.text_keys.get(key, ())
                named = [(*at, column_key) for column_key in column_keys if step.get(column_key)]
                # The calibration text is checked with the columns that `calibration` names.
                if key in step or named or not resolved.calibration:
                    for text in resolved.texts[texts_before:]:
                        swept = [as_list(settings_written.get(column_key)) for column_key in column_keys]
                        for columns in product(*swept):
                            self._columns(named[0] if named else text.at, text.source, columns)
        return settings_written

    def _text(self, at: KeyPath, text: Any, resolved: Resolved) -> str:
        source = self._source(at, text)
        if source is None:
            return str(text)
        fingerprint = self._fingerprint(at, source)
        if fingerprint:
            resolved.texts.append(NamedSource(at, str(text), source))
        return str(Reference(source.text, digest([fingerprint, source.file])))

    def _file(self, at: KeyPath, name: str, resolved: Resolved) -> str:
        path = self.loaded.folder.absolute() / os.path.expanduser(name)
        try:
            return str(Reference(str(path), self.cache.sha256(path)))
        except OSError as error:
            self._report(at, SourceError(f"{path}: {error.strerror}", "name a readable file"))
            return name

    def _teacher(self, at: KeyPath, name: str, resolved: Resolved) -> str:
        source = self._source(at, name) if name != DENSE else None
        if source is None:
            return name
        fingerprint = self._fingerprint(at, source)
        if fingerprint:
            resolved.teachers.append(NamedSource(at, name, source))
        return str(Reference(source.text, digest(fingerprint)))

    def _task(
        self, at: KeyPath, task: ManifestTask, names_taken: dict[str, benchmarks.OwnData], documents: dict[str, int]
    ) -> ManifestTask:
        """Return a task; one over the user's own data with its name, added to ``names_taken``, and a ``Reference``."""
        source_text = task.source or (benchmarks.KINDS[task.task].source if task.task in benchmarks.KINDS else None)
        if not source_text:
            return task
        key = "source" if task.source else "task"
        try:
            source = self.lock.pin(sources.parse(source_text, self.loaded.folder), self.cache)
            name = task.name or default_name(task.task, source) + (f"-{task.metric}" if task.metric else "")
            reference = Reference(source.text, content(source, self.cache))
            task = task.model_copy(update={"source": str(reference), "name": name})
            own_data = own_data_of(task)
            assert own_data
            key = next((given for given in ("columns", "field") if getattr(task, given)), key)
            own_data.inspect(name, self.cache)
            documents[name] = own_data.estimate_documents(self.cache)
        except SparsebenchError as error:
            self._report((*at, key), error)
            return task
        name_path = (*at, "name" if task.name else "task")
        if (own_data.kind == LM_EVAL or name != task.task) and benchmarks.is_task(name, self.cache):
            message, expected = f"there is a task `{name}` already", "a name of its own"
            self.problems.append(self.loaded.problem(name_path, message, expected))
        elif names_taken.setdefault(name, own_data) != own_data:
            message, expected = f"a second task called `{name}`, of other data or settings", "a `name` for each"
            self.problems.append(self.loaded.problem(name_path, message, expected))
        return task


def _no_model(source: sources.Source) -> SourceError | None:
    """Return why a path of the user's own holds no model; None where it may hold one."""
    path = Path(source.location)
    hint = "name a Hugging Face folder, or one GGUF file whose name ends in .gguf"
    if source.kind == "path" and path.is_file() and path.suffix.lower() != ".gguf":
        return SourceError(f"{path}: a file that is no model", hint)
    if source.kind == "path" and path.is_dir() and not (path / "config.json").is_file():
        return SourceError(f"{path}: it has no config.json", hint)
    return None


T = TypeVar("T", ManifestTask, ManifestRuntime)


def _selecting(block: T, planned: Mapping[tuple[str, str], str]) -> T:
    """Return a task or a runtime block whose ``select`` names files, texts and teachers as the planned steps do."""

    def renamed(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(key, item) for item in value]
        return planned.get((key, value), value) if isinstance(value, str) else value

    if not block.select:
        return block
    selections = [{key: renamed(key, value) for key, value in selection.items()} for selection in block.select]
    return block.model_copy(update={"select": selections})
