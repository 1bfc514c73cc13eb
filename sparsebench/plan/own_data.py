"""Locates the user's own data that a manifest's tasks are over, and names these tasks, before a run."""

from __future__ import annotations

from collections.abc import Callable

from sparsebench import benchmarks, sources
from sparsebench.benchmarks.own import content, default_name
from sparsebench.errors import SparsebenchError
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.problems import Problem
from sparsebench.manifest.schema import FAMILIES, LM_EVAL, Family, Manifest, ManifestBenchmarks, ManifestTask
from sparsebench.plan.stages import own_of
from sparsebench.steps.contract import with_content

Pinned = Callable[[sources.Source], sources.Source]
"""A function that returns a hub source at the commit that its revision meant when it was first resolved."""


def located(
    loaded: LoadedManifest, manifest: Manifest, pinned: Pinned, cache: sources.Cache
) -> tuple[ManifestBenchmarks, dict[str, int], list[Problem]]:
    """Return the tasks, about how many documents those over the user's own data have, by name, and the problems.

    Tasks over the user's own data get a name, and a source in canonical notation with a hash of its content. A problem
    is data that cannot be fetched or lack what is asked for, or a name that another task has.
    """
    problems: list[Problem] = []
    names: dict[str, benchmarks.OwnData] = {}
    documents: dict[str, int] = {}

    def found(family: Family, index: int, task: ManifestTask) -> ManifestTask:
        source = task.source or (benchmarks.KINDS[task.task].source if task.task in benchmarks.KINDS else None)
        if not source:
            return task
        at, key = ("benchmarks", family, index), "name" if task.name else "task"
        place = "source" if task.source else "task"
        try:
            parsed = pinned(sources.parse(source, loaded.folder))
            name = task.name or default_name(task.task, parsed) + (f"-{task.metric}" if task.metric else "")
            text = with_content(parsed.text, content(parsed, cache))
            task = task.model_copy(update={"source": text, "name": name})
            own = own_of(task)
            assert own
            place = "columns" if task.columns else "field" if task.field else place
            own.inspect(name, cache)
            documents[name] = own.about(cache)
        except SparsebenchError as error:
            problems.append(loaded.problem((*at, place), error.message, "", error.hint or ""))
            return task
        if (own.kind == LM_EVAL or name != task.task) and benchmarks.known(name, cache):
            problems.append(loaded.problem((*at, key), f"there is a task `{name}` already", "a name of its own"))
        elif names.setdefault(name, own) != own:
            problems.append(
                loaded.problem(
                    (*at, key), f"a second task called `{name}`, of other data or settings", "a `name` for each"
                )
            )
        return task

    every = {
        side: [found(family, index, task) for index, task in enumerate(manifest.benchmarks.of(family))]
        for family in FAMILIES
        for side in [family.replace("-", "_")]
    }
    return manifest.benchmarks.model_copy(update=every), documents, problems
