"""Checks whether a manifest's models can do its tasks, as far as a config.json tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sparsebench import benchmarks
from sparsebench.benchmarks.encoder import fitting, lacking
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.problems import Problem
from sparsebench.manifest.schema import FAMILIES, Family, Manifest, ManifestBenchmarks, ManifestTask
from sparsebench.models.text import longest_input
from sparsebench.plan.stages import own_of


def unfit(
    loaded: LoadedManifest, manifest: Manifest, tasks: ManifestBenchmarks, configs: Mapping[str, Mapping[str, Any]]
) -> Iterator[Problem]:
    """Report tasks that a model's config.json rules out. A model of random weights is scored on no task."""
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


def _ruled_out(task: ManifestTask, family: Family, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key of an entry that does not fit a model, and the reason; that is empty where all keys fit."""
    own = own_of(task)
    row = own.row("") if own else benchmarks.all_tasks().get(task.task)
    # Tasks without a row are lm-eval's.
    if family == "encoder" and (missing := lacking(row.adapter if row else "harness", config)):
        return "task", f"it needs {missing}, and its config.json has {config.get('architectures')}"
    # Only transformers knows how long an input may be, and it takes a second to import.
    longest = longest_input(config) if own and row and own.window and row.form in ("passages", "published") else None
    if own and own.window and longest and own.window > longest:
        return "length" if own.length else "task", f"windows of {own.window:,} tokens, where it takes {longest:,}"
    return "task", ""
