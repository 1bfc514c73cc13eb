"""A rehearsal: the same manifest with seeded random weights of the true architectures.

It shows memory, time and disk before tens of gigabytes are downloaded. Nothing is scored: weights are random.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from sparsebench.errors import UserError
from sparsebench.manifest.recipes import models_of
from sparsebench.manifest.schema import Manifest, ManifestBenchmarks, ManifestModel, as_list
from sparsebench.plan.expand import recipes

REHEARSED_SPARSITY = 0.9


def rehearsal(manifest: Manifest, full: bool) -> Manifest:
    """Return the manifest to rehearse: random weights, no benchmarks and, unless ``full``, one sparsity of magnitude.

    Raises UserError naming the models that have no ``architecture:``.
    """
    shapeless = [model.name for model in manifest.models if model.architecture is None]
    if shapeless:
        raise UserError(
            f"cannot rehearse {', '.join(shapeless)}: no `architecture:`",
            "put the model's config.json under `architecture:` in the manifest",
        )
    identity = attrgetter("architecture", "family", "dtype")
    models: list[ManifestModel] = []
    for model in manifest.models:
        drawn = model.model_copy(update={"source": "random"})
        if identity(drawn) in map(identity, models):
            # Models of one shape would get one id, and its results would be filed under only one of the names.
            named = {**(model.architecture or {}), "_name_or_path": model.name}
            drawn = drawn.model_copy(update={"architecture": named})
        models.append(drawn)
    update: dict[str, object] = {"models": models, "benchmarks": ManifestBenchmarks(), "outputs": None}
    if full:
        # Random weights come without the tokenizer that calibration text needs.
        update["variants"] = [recipe for entry in manifest.variants for recipe in _without_text(entry)]
    else:
        update["variants"] = [_one_sparsity(manifest.variants)] if manifest.variants else []
        if manifest.runtime:
            update["runtime"] = [runtime.model_copy(update={"select": None}) for runtime in manifest.runtime]
    return manifest.model_copy(update=update)


def _without_text(entry: Any) -> list[list[dict[str, Any]]]:
    """Return the recipes of an entry that need no tokenizer, each written out as a list of steps without sweeps."""
    only = {} if models_of(entry) is None else {"models": models_of(entry)}
    return [
        [{step.verb: step.name, **step.settings.record(), **only} for step in recipe]
        for recipe in recipes(entry)
        if not any(step.settings.reads_text() or step.settings.text_keys or step.verb == "trim" for step in recipe)
    ]


def _one_sparsity(entries: Sequence[Any]) -> dict[str, Any]:
    """Return magnitude pruning at one sparsity: REHEARSED_SPARSITY if it was asked for, else the middle one."""
    first = next((entry for entry in entries if isinstance(entry, dict) and entry.get("prune") == "magnitude"), {})
    swept = first.get("sparsity") or REHEARSED_SPARSITY
    sparsities = as_list(swept)
    middle = sparsities[len(sparsities) // 2]
    return {"prune": "magnitude", "sparsity": REHEARSED_SPARSITY if REHEARSED_SPARSITY in sparsities else middle}
