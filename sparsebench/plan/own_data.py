"""A manifest's tasks before a run: where data of one's own lie and what they are called; whether models can do the tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sparsebench import benchmarks, sources
from sparsebench.benchmarks.encoder import fitting, lacking
from sparsebench.benchmarks.own import content, named
from sparsebench.errors import SparsebenchError
from sparsebench.manifest.load import Loaded
from sparsebench.manifest.problems import Problem
from sparsebench.manifest.schema import FAMILIES, LM_EVAL, Benchmarks, Family, Manifest, Task
from sparsebench.models.text import longest_input
from sparsebench.plan.stages import own_of
from sparsebench.steps.contract import with_content

Pinned = Callable[[sources.Source], sources.Source]
"""A source of the hub's at the commit that its revision meant when it was first resolved."""


def located(
    loaded: Loaded, manifest: Manifest, pinned: Pinned, cache: sources.Cache, offline: bool
) -> tuple[Benchmarks, dict[str, int], list[Problem]]:
    """The tasks, those over one's own data with a name, and a source in canonical notation with a hash of its content; about
    how many documents these have, by name.

    Also what is wrong with them: data that cannot be had or do not hold what is asked for, a name that is another task's.
    """
    problems: list[Problem] = []
    names: dict[str, benchmarks.Own] = {}
    documents: dict[str, int] = {}

    def found(family: Family, index: int, task: Task) -> Task:
        source = task.source or (benchmarks.KINDS[task.task].source if task.task in benchmarks.KINDS else None)
        if not source:
            return task
        at, key = ("benchmarks", family, index), "name" if task.name else "task"
        try:
            parsed = pinned(sources.parse(source, loaded.folder))
            name = task.name or named(task.task, parsed) + (f"-{task.metric}" if task.metric else "")
            text = with_content(parsed.text, content(parsed, cache, offline))
            task = task.model_copy(update={"source": text, "name": name})
            own = own_of(task)
            assert own
            own.inspect(name, cache)
            documents[name] = own.about(cache)
        except SparsebenchError as error:
            place = "columns" if task.columns else "field" if task.field else "source" if task.source else "task"
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


def unfit(
    loaded: Loaded, manifest: Manifest, tasks: Benchmarks, configs: Mapping[str, Mapping[str, Any]]
) -> Iterator[Problem]:
    """Tasks that a model's config.json rules out. A model of random weights is scored on none."""
    for family in FAMILIES:
        for index, task in enumerate(tasks.of(family)):
            for model in manifest.models:
                config = configs.get(model.name) if model.source != "random" else None
                asked = model.family == family and (task.models is None or model.name in task.models)
                if config and asked:
                    key, words = _ruled_out(task, family, config)
                    hint = f"for this model: {', '.join(fitting(config))}" if words and family == "encoder" else ""
                    at = ("benchmarks", family, index, key)
                    yield from [loaded.problem(at, f"{model.name}: {words}", "", hint)] if words else []


def _ruled_out(task: Task, family: Family, config: Mapping[str, Any]) -> tuple[str, str]:
    """The key of an entry that does not fit a model, and why; no words where all do."""
    own = own_of(task)
    row = own.row("") if own else benchmarks.all_tasks().get(task.task)
    # Tasks without a row are lm-eval's.
    if family == "encoder" and (missing := lacking(row.adapter if row else "harness", config)):
        return "task", f"it needs {missing}, and its config.json has {config.get('architectures')}"
    # What a model takes, transformers knows, which needs a second to be imported.
    longest = longest_input(config) if own and row and own.window and row.form in ("passages", "published") else None
    if own and own.window and longest and own.window > longest:
        return "length" if own.length else "task", f"windows of {own.window:,} tokens, where it takes {longest:,}"
    return "task", ""
