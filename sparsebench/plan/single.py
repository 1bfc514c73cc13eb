"""Prepares one model named on the command line, in the same folder of the same cache as a manifest would use."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from sparsebench import bounded, sources
from sparsebench.benchmarks import TaskSpec
from sparsebench.errors import SourceError, UserError
from sparsebench.manifest.names import FAMILIES, Dtype, Family
from sparsebench.manifest.problems import ManifestError
from sparsebench.manifest.schema import Manifest, ManifestBenchmarks, ManifestModel
from sparsebench.models.files import building
from sparsebench.models.files.families import family_of
from sparsebench.plan.checks import load
from sparsebench.plan.expand import expand
from sparsebench.plan.fit import unfit_tasks
from sparsebench.plan.resolve import Resolver
from sparsebench.plan.stages import own_data_of
from sparsebench.storage import is_packed, sums
from sparsebench.storage.packed import PackedCheckpoint


@dataclass(frozen=True)
class SingleModel:
    """A prepared model: its folder, name, family and precision."""

    name: str
    folder: Path
    family: Family
    dtype: Dtype = "auto"


def prepare_single(
    text: str,
    family: str | None,
    dtype: Dtype,
    cache: sources.Cache,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> SingleModel:
    """Fetch and prepare the model that ``text`` names; a bare path that exists stands for ``path:``, packed or not.

    ``check`` may refuse the model by its config.json, before anything is fetched if that file can be read by itself.
    Raises SourceError when the model cannot be found, when its family can neither be read nor was given, and for an
    alias that is also the name of a file or folder here: nobody could tell which of the two was measured. Raises
    UserError when a packed model is given a ``dtype``.
    """
    if family is not None and family not in FAMILIES:
        raise SourceError(f"there is no family {family!r}", f"one of {', '.join(FAMILIES)}")
    if os.path.exists(text) and text in sources.KNOWN:
        raise SourceError(
            f"{text}: a model's alias, and there is a file or folder of that name here",
            f"write ./{text} for the folder; for the model, call from another folder",
        )
    source = source_named(text)
    if source.kind == "path" and is_packed(Path(source.location)):
        if dtype != "auto":
            raise UserError(
                f"{text}: a packed model stays in its own precision, not {dtype}", "unpack it first: sparsebench unpack"
            )
        return _packed(source, family, check)
    if check:
        check(sources.read_config(source, cache) or {})
    known_family = family or family_named(source, cache)
    name = text if text in sources.KNOWN else name_of(source)
    model = ManifestModel(name=name, source=source.text, family=known_family, dtype=dtype)  # type: ignore[arg-type]
    revision = sources.fingerprint(source, cache)
    plan = expand(Manifest(version=1, models=[model]), "single", {model.name: revision})
    folder = plan.dense[model.name].folder(cache.root / "work")
    if building.is_whole(folder) and (damage := sums.damage(folder)):
        print(f"{damage}: the model is made again", file=sys.stderr)
        shutil.rmtree(building.set_aside(folder), ignore_errors=True)
    if not building.is_whole(folder):
        from sparsebench.models.prepare import obtain

        obtain(model, folder, cache, 0)
        sums.seal(folder)
    if check:
        check(bounded.read_object(folder / "config.json"))
    return SingleModel(model.name, folder, model.family, dtype)


def manifest_tasks(
    manifest: Path, model: SingleModel, cache: sources.Cache, labels: Sequence[str] | None = None
) -> list[TaskSpec]:
    """Return the tasks of a manifest for the model's family, those over the user's own data included.

    ``labels`` are the names of a head's outputs. The tasks' ``models`` and ``select`` are ignored. Raises ManifestError
    with every problem, and UserError where the manifest has no task for the family.
    """
    loaded = load(manifest)
    resolver = Resolver(loaded, cache)
    config = bounded.read_object(model.folder / "config.json")
    entry = ManifestModel(
        name=model.name, source=f"path:{model.folder}", family=model.family, labels=[*labels] if labels else None
    )
    family_tasks = [task.model_copy(update={"models": None}) for task in loaded.manifest.benchmarks.of(model.family)]
    benchmarks = ManifestBenchmarks().model_copy(update={model.family.replace("-", "_"): family_tasks})
    single_manifest = loaded.manifest.model_copy(update={"models": [entry], "benchmarks": benchmarks})
    resolved = resolver.tasks(single_manifest, {})
    problems = resolver.problems or [*unfit_tasks(loaded, single_manifest, resolved, {entry.name: config})]
    if problems:
        raise ManifestError(problems)
    specs = [
        TaskSpec(
            task.name or task.task,
            task.limit,
            task.num_fewshot,
            batch=None if task.batch == "auto" else task.batch,
            own=own_data_of(task),
            divergence=task.divergence,
        )
        for task in resolved.of(model.family)
    ]
    if not specs:
        raise UserError(
            f"{manifest}: no tasks for {model.family} models", f"list some under `benchmarks: {model.family}:`"
        )
    return specs


def _packed(
    source: sources.Source, family: str | None, check: Callable[[Mapping[str, Any]], None] | None
) -> SingleModel:
    """Return a packed folder as a model: it is read where it is, and nothing is prepared."""
    folder = Path(source.location)
    config = PackedCheckpoint(folder).config
    if check:
        check(config)
    known_family = family or _stated_family(config, folder)
    return SingleModel(name_of(source), folder, known_family)  # type: ignore[arg-type]


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Raise UserError, naming the key, where a manifest's rule is broken."""
    try:
        yield
    except (ValidationError, PydanticCustomError) as error:
        details: Any = error.errors()[0] if isinstance(error, ValidationError) else {"ctx": error.context, "loc": ()}
        context = details.get("ctx") or {}
        # A rule on several keys has no path of its own: it says which key broke it, if it was one.
        key = next(iter(details["loc"]), context.get("at"))
        message = context.get("message") or details["msg"]
        hint = "; ".join(filter(None, (context.get("expected"), context.get("hint"))))
        raise UserError(f"{key}: {message}" if key else message, hint or None) from error


def source_named(text: str) -> sources.Source:
    """Return the source that a person names; a bare path that exists stands for ``path:``."""
    return sources.parse(f"path:{text}" if os.path.exists(text) else text)


def family_named(source: sources.Source, cache: sources.Cache) -> Family:
    """Return the checkpoint's own family. A GGUF file's cannot be read cheaply: such models are decoders."""
    config = sources.read_config(source, cache)
    if config is None and ".gguf" not in source.text.lower():
        folder = sources.fetch(source, cache)
        config = sources.read_config(sources.parse(f"path:{folder}"), cache)
    return _stated_family(config, source.text) if config else "decoder"


def _stated_family(config: Mapping[str, Any], where: Path | str) -> Family:
    """Return the family that a config.json from ``where`` states. Raises SourceError where it states none."""
    family = family_of(config)
    if family is None:
        raise SourceError(f"{where}: its config.json does not tell the family", "say it with --family")
    return family


def name_of(source: sources.Source) -> str:
    """Return a short name for tables: the repository's, the folder's, or the package's."""
    path = source.repo or source.location or (source.parts[0].project if source.parts else source.kind)
    last_part = path.rstrip("/").rsplit("/", 1)[-1]
    return re.sub("[^A-Za-z0-9._-]", "-", last_part).lstrip("._-")[:64] or "model"
