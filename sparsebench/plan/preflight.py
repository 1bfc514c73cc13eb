"""Finds everything wrong with a run that can be found before any weights are fetched.

A manifest is loaded and checked against methods, tasks and checkpoints. Sources get their fingerprints. A lock file
beside the manifest pins what the hub's moving names mean.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsebench import benchmarks, bounded, devices, sources
from sparsebench.errors import SourceError, UserError
from sparsebench.manifest.checks import Checks
from sparsebench.manifest.load import LoadedManifest, check_family, load
from sparsebench.manifest.nodes import At
from sparsebench.manifest.problems import ManifestError, Problem
from sparsebench.manifest.recipes import chain_of, steps_of, verb_and_name
from sparsebench.manifest.schema import (
    FAMILIES,
    Manifest,
    ManifestCalibration,
    ManifestModel,
    ManifestTask,
)
from sparsebench.models import building
from sparsebench.models.families import family_of
from sparsebench.paths import unlinked
from sparsebench.plan import own_data
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.expand import DataInfo, Plan, count, expand, recipes, resolved
from sparsebench.plan.fingerprint import digest
from sparsebench.plan.refused import refused
from sparsebench.plan.rehearse import rehearsal
from sparsebench.plan.sizes import model_size
from sparsebench.plan.teachers import Teachers
from sparsebench.plan.unfit import reads_text, unfit, unfit_steps, without_class
from sparsebench.runtime.engines import engines
from sparsebench.sources.cache import write_json
from sparsebench.steps.calibration import DEFAULT
from sparsebench.steps.contract import Step, with_content, with_hash
from sparsebench.steps.registry import closed_by, combinations, kinds, sweepable, with_text
from sparsebench.storage import formats

DEFAULT_LEDGER = Path("ledger/sparsebench.duckdb")


@dataclass(frozen=True)
class PlanRequest:
    """What a person asks of a manifest on the command line."""

    path: Path
    ledger: Path | None = None
    offline: bool = False
    rehearse: bool = False
    full: bool = False
    only: tuple[tuple[str, str], ...] = ()
    device: str | None = None
    executor: str = "local"
    retry_failed: bool = False
    jobs: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A manifest that has passed the preflight: its plan, its ledger and folders, its models' sizes and its device."""

    request: PlanRequest
    manifest: Manifest
    plan: Plan
    ledger: Path
    work: Path
    cache: sources.Cache
    sizes: dict[str, ModelSize]
    device: str = "cpu"
    refused: Mapping[str, Problem] = field(default_factory=dict)
    """The cells that the device or the executor cannot do, by id, each with the reason at the line that asks for it."""
    named: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """How the plan names a file, text or teacher, by its setting and by how the manifest names it."""

    @property
    def keep(self) -> str:
        """Which folders of variants stay: `packed`, `dense` or `none`."""
        return self.manifest.storage.keep if self.manifest.storage else "none"

    def has(self, model: str) -> bool:
        """Return whether the work folder has the model, prepared."""
        return building.whole(self.plan.dense[model].folder(self.work))


def prepare(request: PlanRequest) -> Prepared:
    """Load, check and expand a manifest.

    Raises ManifestError with every problem at once, SourceError when a source cannot be found, and UserError for a
    device that is not here or that torch does not see.
    """
    loaded = load(request.path, checks())
    manifest = rehearsal(loaded.manifest, request.full) if request.rehearse else loaded.manifest
    _limited(loaded, manifest)
    device = devices.resolve(request.device or manifest.device)
    cache = sources.Cache(offline=request.offline)
    manifest, revisions, configs, texts, named = _look_up(loaded, manifest, request, cache)
    name = (manifest.name or request.path.stem) + ("-rehearsal" if request.rehearse else "")
    plan = expand(manifest, name, revisions, texts)
    work = _home(manifest.work_dir) if manifest.work_dir else cache.root / "work"
    sizes = {}
    for model in plan.models:
        found = model_size(model, configs.get(model.name), plan.dense[model.name].folder(work))
        sizes[model.name] = replace(found, device=device)
    ledger = ledger_path(request.ledger, manifest.ledger)
    unable = refused(loaded, manifest, plan, device, request.executor)
    return Prepared(request, manifest, plan, ledger, work, cache, sizes, device, unable, named)


def _limited(loaded: LoadedManifest, manifest: Manifest) -> None:
    """Refuse lists that multiply to more cells than anybody can measure, before they are expanded."""
    most = max(bounded.CELLS, bounded.CELLS_A_MODEL * len(manifest.models))
    if (cells := count(manifest)) > most:
        message = f"the lists of `variants`, `benchmarks` and `runtime` multiply to {cells:,} cells"
        raise ManifestError(
            [loaded.problem(("variants",), message, f"at most {most:,}", "shorten them, or split the manifest")]
        )


def checks() -> Checks:
    """Return the checks that the package `manifest` cannot do by itself."""
    return Checks(
        step_files=lambda: {verb: kind.files for verb, kind in kinds().items()},
        step_names=lambda: {verb: kind.settings() for verb, kind in kinds().items()},
        step_shape=lambda verb, name: sweepable(kinds()[verb].settings()[name]),
        read_step=combinations,
        engine_names=engines,
        format_names=formats,
        task_names=functools.cache(lambda: dict.fromkeys(benchmarks.names())),  # thousands, read from a file
        parse_source=sources.parse,
        family_of=family_of,
        task_families=benchmarks.families,
        own_kinds=lambda: benchmarks.KINDS,
        closed_by=lambda step, behind: closed_by(Step(step.verb, step.name, dict(step.settings)), behind),
        may_follow=lambda verb: kinds()[verb].but if verb in kinds() else (),
    )


def ledger_path(option: Path | None, manifest: str | None = None) -> Path:
    """Return the ledger's path: the command line's, else the manifest's, else $SPARSEBENCH_LEDGER, else the default."""
    if option:
        return option
    if manifest:
        return _home(manifest)
    return Path(os.environ.get("SPARSEBENCH_LEDGER") or DEFAULT_LEDGER)


def _home(text: str) -> Path:
    """Return a manifest's path with ``~`` expanded as by a shell. Raises UserError for the home of an unknown user."""
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise UserError(f"{text}: there is no user {found.split('/')[0][1:]}", "name the folder itself")
    return Path(found)


class Lock:
    """``MANIFEST.lock``: what moving names of the hub (``@main``) meant when they were first resolved.

    Raises UserError for a file that is not such a list, or a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = unlinked(path)
        hint = "remove it: names such as @main are then resolved anew"
        self.commits: dict[str, str] = bounded.read_object(path, UserError, hint) if path.is_file() else {}

    def pinned(self, source: sources.Source, cache: sources.Cache) -> sources.Source:
        """Return a hub source at the commit that its revision meant when it was first resolved; others do not move.

        Raises SourceError for ``random``, which only a model's weights can be.
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


def _look_up(
    loaded: LoadedManifest, manifest: Manifest, request: PlanRequest, cache: sources.Cache
) -> tuple[Manifest, dict[str, str], dict[str, dict[str, Any]], DataInfo, dict[tuple[str, str], str]]:
    """Return the manifest with every source located, each model's fingerprint and config.json, and the DataInfo.

    Sources are in canonical notation: paths from the current folder or absolute, revisions of the hub as commits. How
    the plan names those of steps comes last (``Prepared.named``). All that fail are reported together, each at its line.
    """
    lock = Lock(request.path.with_suffix(".lock"))
    models, revisions, configs, problems = _located_models(loaded, manifest, lock, cache)
    problems += check_family(loaded, configs, family_of)
    problems += _same_checkpoint(loaded, models, revisions)
    chains = [[*recipes(entry)] for entry in manifest.variants]
    calibrated = any(reads_text(step) for entry in chains for chain in entry for step in chain)
    problems += without_class(loaded, manifest, configs, calibrated)
    calibration, text, wrong = _located_text(loaded, manifest, lock, cache, calibrated or bool(manifest.outputs))
    problems += wrong
    if calibrated:
        problems += _overlaps(loaded, manifest)
    problems += unfit_steps(loaded, manifest, chains, configs)
    variants, wrong = _with_texts(loaded, manifest, lock, cache)
    problems += wrong
    pinned = functools.partial(lock.pinned, cache=cache)
    variants, wrong = Teachers(loaded, models, configs, pinned, cache).located(variants)
    problems += wrong
    tasks, documents, wrong = own_data.located(loaded, manifest, pinned, cache)
    problems += wrong or unfit(loaded, manifest, tasks, configs)
    if problems:
        raise ManifestError(problems)
    made = _hashed(loaded.folder, cache, variants)
    named = _planned(manifest.variants, made)
    selected = functools.partial(_selected, named)
    located = {
        "models": models,
        "calibration": calibration,
        "variants": made,
        "benchmarks": tasks.model_copy(
            update={
                side: [task.model_copy(update={"select": selected(task.select)}) for task in found]
                for side, found in tasks
            }
        ),
        "runtime": [block.model_copy(update={"select": selected(block.select)}) for block in manifest.runtime or []],
    }
    return manifest.model_copy(update=located), revisions, configs, DataInfo(text, documents), named


def _located_models(
    loaded: LoadedManifest, manifest: Manifest, lock: Lock, cache: sources.Cache
) -> tuple[list[ManifestModel], dict[str, str], dict[str, dict[str, Any]], list[Problem]]:
    """Return the models with their sources located, each one's fingerprint and config.json, and what is wrong."""
    models: list[ManifestModel] = []
    revisions: dict[str, str] = {}
    configs: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for index, model in enumerate(manifest.models):
        source = sources.parse(model.source, loaded.folder)
        if source.kind == "random":
            revisions[model.name], configs[model.name] = "random", model.architecture or {}
            models.append(model.model_copy(update={"source": source.text}))
            continue
        try:
            source = lock.pinned(source, cache)
            models.append(model.model_copy(update={"source": source.text}))
            revisions[model.name] = sources.fingerprint(source, cache)
            config = sources.read_config(source, cache)
        except SourceError as error:
            problems.append(loaded.problem(("models", index, "source"), error.message, "", error.hint or ""))
            continue
        if config:
            configs[model.name] = config
    return models, revisions, configs, problems


def _located_text(
    loaded: LoadedManifest, manifest: Manifest, lock: Lock, cache: sources.Cache, read: bool
) -> tuple[ManifestCalibration, str, list[Problem]]:
    """Return the calibration with its source located, the text's fingerprint if it is ``read``, and what is wrong."""
    text, calibration = "", manifest.calibration
    if calibration.source is not None:
        canonical = sources.parse(calibration.source, loaded.folder).text
        calibration = calibration.model_copy(update={"source": canonical})
    if not read:
        return calibration, text, []
    try:
        source = lock.pinned(_calibration_text(manifest, loaded.folder), cache)
        text = "!".join(filter(None, (sources.fingerprint(source, cache), source.file)))
    except SourceError as error:
        return calibration, text, [loaded.problem(("calibration", "source"), error.message, "", error.hint or "")]
    if calibration.source is not None:
        calibration = calibration.model_copy(update={"source": source.text})
    return calibration, text, []


def _calibration_text(manifest: Manifest, folder: Path) -> sources.Source:
    return sources.parse(manifest.calibration.source or DEFAULT.source, folder)


def _overlaps(loaded: LoadedManifest, manifest: Manifest) -> Iterator[Problem]:
    """Report benchmarks whose own documents a method would be calibrated on."""
    if manifest.calibration.allow_overlap:
        return
    source = _calibration_text(manifest, loaded.folder).text
    for family in FAMILIES:
        for index, task in enumerate(manifest.benchmarks.of(family)):
            if _overlap(loaded, source, task):
                yield loaded.problem(
                    ("benchmarks", family, index, "task"),
                    f"the calibration text is part of `{task.task}`",
                    "text that no benchmark is made of",
                    "name another `calibration: source`, or say `allow_overlap: true` there",
                )


def _with_texts(
    loaded: LoadedManifest, manifest: Manifest, lock: Lock, cache: sources.Cache
) -> tuple[list[Any], list[Problem]]:
    """Return the entries of ``variants`` with the texts that their steps read, and the problems with these texts.

    Texts are in canonical notation with a hash of the content. A step that needs a text and names none gets the
    calibration text. A text that a benchmark is made of is a problem, too.
    """
    problems: list[Problem] = []

    def located(at: At, text: Any) -> str:
        try:
            if text is None:
                raise SourceError("an empty item in a list of texts", "name each of them")
            source = lock.pinned(sources.parse(text, loaded.folder), cache)
            tasks = [] if manifest.calibration.allow_overlap else _tasks_of(loaded, manifest, source.text)
            for task in tasks:
                problems.append(
                    loaded.problem(
                        at, f"its text is part of `{task}`", "text that no benchmark is made of",
                        "name another `source`, or say `allow_overlap: true` under `calibration`",
                    )
                )  # fmt: skip
            return with_content(source.text, digest([sources.fingerprint(source, cache), source.file]))
        except SourceError as error:
            problems.append(loaded.problem(at, error.message, "", error.hint or ""))
            return str(text)

    usual = resolved(manifest.calibration, manifest.seed)

    def filled(at: At, step: Mapping[str, Any]) -> dict[str, Any]:
        made = with_text(step, manifest.calibration.source or DEFAULT.source, (usual.field, usual.target))
        verb, _ = verb_and_name(step, kinds())
        for key in filter(made.__contains__, kinds()[verb].texts):
            given, place = made[key], (*at, key) if key in step else at
            made[key] = [located(place, one) for one in given] if isinstance(given, list) else located(place, given)
        return made

    entries: list[Any] = []
    for place, entry in enumerate(manifest.variants):
        steps = [filled(at, step) for at, step in steps_of(place, entry)]
        entries.append(steps if isinstance(entry, list) else steps[0])
    return entries, problems


def _tasks_of(loaded: LoadedManifest, manifest: Manifest, source: str) -> list[str]:
    """Return the tasks of a manifest that hold documents of a source."""
    held = [task.task for task in manifest.benchmarks.every() if _overlap(loaded, source, task)]
    return list(dict.fromkeys(held))


def _overlap(loaded: LoadedManifest, source: str, task: ManifestTask) -> bool:
    data = sources.parse(task.source, loaded.folder).text if task.source else ""
    return benchmarks.overlaps(source, task.task, data=data)


def _same_checkpoint(
    loaded: LoadedManifest, models: list[ManifestModel], revisions: dict[str, str]
) -> Iterator[Problem]:
    """Report two names for one checkpoint: its results would be filed under only one of them."""
    seen: dict[str, str] = {}
    places = {model.name: index for index, model in enumerate(loaded.manifest.models)}
    for model in models:
        index = places[model.name]
        drawn = model.architecture if model.source == "random" else None
        key = digest([revisions.get(model.name, model.name), drawn, model.family, model.dtype])
        if key in seen:
            yield loaded.problem(
                ("models", index, "source"), f"`{model.name}` is the same checkpoint as `{seen[key]}`", "one name for each",
                "measure it in another way in a manifest of its own",
            )  # fmt: skip
        seen.setdefault(key, model.name)


def _hashed(folder: Path, cache: sources.Cache, written: Any) -> Any:
    """Return steps in which the files that they name are absolute paths with the hashes of their contents."""
    if isinstance(written, list):
        return [_hashed(folder, cache, one) for one in written]
    if not isinstance(written, Mapping):
        return written
    keys = {key for kind in kinds().values() for key in kind.files}

    def hashed(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, str):
            return [hashed(one) for one in value]
        path = folder.absolute() / os.path.expanduser(value)
        try:
            return with_hash(path, cache.sha256(path))
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}", "name a readable file") from error

    return {key: hashed(value) if key in keys else value for key, value in written.items()}


def _planned(written: list[Any], made: list[Any]) -> dict[tuple[str, str], str]:
    """Return how planned steps name the files, texts and teachers, by setting and by how the manifest names them."""
    keys = {key for kind in kinds().values() for key in (*kind.files, *kind.texts, *kind.teachers)}
    found: dict[tuple[str, str], str] = {}
    for entry, planned in zip(written, made, strict=True):
        for step, now in zip(chain_of(entry), chain_of(planned), strict=True):
            for key in keys & step.keys():
                said, meant = (one[key] if isinstance(one[key], list) else [one[key]] for one in (step, now))
                found |= {(key, text): its for text, its in zip(said, meant, strict=True) if isinstance(text, str)}
    return found


def _selected(
    planned: Mapping[tuple[str, str], str], selections: list[dict[str, Any]] | None
) -> list[dict[str, Any]] | None:
    """Return the selections with files, texts and teachers named as the planned steps name them."""

    def now(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [now(key, one) for one in value]
        return planned.get((key, value), value) if isinstance(value, str) else value

    return selections and [{key: now(key, value) for key, value in one.items()} for one in selections]
