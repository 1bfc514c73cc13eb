"""Checks whether a manifest's models can do its tasks and take its steps, as far as a config.json tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsebench import benchmarks, environment
from sparsebench.benchmarks.encoder import fitting, lacking
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.problems import Problem
from sparsebench.manifest.recipes import is_for, steps_of
from sparsebench.manifest.schema import FAMILIES, Family, Manifest, ManifestBenchmarks, ManifestTask
from sparsebench.models.families import MODEL_TYPES, unknown_type
from sparsebench.models.text import longest_input
from sparsebench.models.topology import LOOKS_AT_WEIGHTS, REFUSED, refusal
from sparsebench.plan.stages import own_of
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import kinds, label

Chains = Sequence[Sequence[tuple[Step, ...]]]
"""The recipes of each entry of ``variants``, written out."""
Configs = Mapping[str, Mapping[str, Any]]
"""The config.json of each model, by its name."""


def reads_text(step: Step) -> bool:
    """Return whether a step reads the calibration text."""
    return kinds()[step.verb].reads_text(step)


def without_class(loaded: LoadedManifest, manifest: Manifest, configs: Configs, calibrated: bool) -> Iterator[Problem]:
    """Report models that transformers has no class for, where something must run them; weights alone need no class."""
    for index, model in enumerate(manifest.models):
        config = configs.get(model.name)
        runs = calibrated or manifest.runtime or manifest.benchmarks.of(model.family)
        # Most types are in our own table, so that transformers, which takes a second to import, need not be asked.
        asked = config and runs and str(config.get("model_type")) not in MODEL_TYPES
        if words := unknown_type(config, f"{model.source}: config.json") if config and asked else None:
            yield loaded.problem(("models", index, "source"), words[0], "", words[1])


def unfit_steps(loaded: LoadedManifest, manifest: Manifest, chains: Chains, configs: Configs) -> Iterator[Problem]:
    """Report steps that a model's architecture or config.json rules out, or that need a library that is not installed."""
    for index, (entry, recipes) in enumerate(zip(manifest.variants, chains, strict=True)):
        its = {name: config for name, config in configs.items() if is_for(entry, name)}
        if any(reads_text(step) for chain in recipes for step in chain):
            yield from _unreplayed(loaded, index, its)
        places = [at for at, _ in steps_of(index, entry)]
        told: set[tuple[int, str]] = set()
        for chain in recipes:
            for number, step in enumerate(chain):
                for key, words, hint in (*_refused(chain, number, its), *_not_installed(step)):
                    if (number, key) not in told:
                        told.add((number, key))
                        yield loaded.problem(places[number], words, "", hint)


def _unreplayed(loaded: LoadedManifest, index: int, configs: Configs) -> Iterator[Problem]:
    """Report models of an entry that reads text whose architecture cannot be calibrated block by block."""
    for name, config in configs.items():
        kind = str(config.get("model_type"))
        if kind in REFUSED:
            yield loaded.problem(
                ("variants", index), f"{name}: {refusal(kind)}", "a method that looks at weights alone",
                f"{LOOKS_AT_WEIGHTS}, or keep this entry to other `models:`",
            )  # fmt: skip


def _refused(chain: tuple[Step, ...], number: int, configs: Configs) -> Iterator[tuple[str, str, str]]:
    """Yield why a model's config.json rules out a step of a recipe: what is said once, the reason and a hint."""
    step, reshaped = chain[number], any(kinds()[one.verb].reshapes(one) for one in chain[:number])
    kind = kinds()[step.verb]
    for name, config in configs.items():
        words, hint = kind.refuses(step, config)
        if not words and not reshaped:
            words, hint = kind.refuses_shape(step, config)
        if words:
            ways = "; or ".join(filter(None, (hint, "keep this entry to other `models:`")))
            yield f"{name}: {words}", f"{name}: {words}", ways


def _not_installed(step: Step) -> Iterator[tuple[str, str, str]]:
    """Yield what is not installed of the libraries that a step's result depends on: no id could hold its version.

    The form is that of ``_refused``.
    """
    for library in kinds()[step.verb].extra_libraries(step):
        if environment.versions()[library] == "absent":
            way = f"pip install {environment.EXTRAS.get(library, library)}"
            yield library, f"{label(step)}: {library} is not installed", way


def unfit(loaded: LoadedManifest, manifest: Manifest, tasks: ManifestBenchmarks, configs: Configs) -> Iterator[Problem]:
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
