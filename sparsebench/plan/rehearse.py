"""A rehearsal: the same manifest with seeded random weights of the true architectures.

It shows memory, time and disk before tens of gigabytes are downloaded. Nothing is scored: random weights have no scores.
"""

from __future__ import annotations

from sparsebench.errors import UserError
from sparsebench.manifest.schema import Benchmarks, Manifest, Model, Sparsify
from sparsebench.steps.prune.registry import needs_calibration

REHEARSED_SPARSITY = 0.9


def rehearsal(manifest: Manifest, full: bool) -> Manifest:
    """The manifest to rehearse: random weights, no benchmarks, and unless ``full`` one sparsity of one method per model.

    Raises UserError naming the models that have no ``architecture:``.
    """
    bare = [model.name for model in manifest.models if model.architecture is None]
    if bare:
        raise UserError(
            f"cannot rehearse {', '.join(bare)}: no `architecture:`",
            "put the model's config.json under `architecture:` in the manifest",
        )
    models = [_random(model) for model in manifest.models]
    update: dict[str, object] = {"models": models, "benchmarks": Benchmarks()}
    if full:
        # Random weights come without the tokenizer that calibration text needs.
        update["sparsify"] = [plain for entry in manifest.sparsify if (plain := _without_text(entry))]
    else:
        update["sparsify"] = [_one(manifest.sparsify)] if manifest.sparsify else []
        if manifest.runtime:
            unfiltered = {"sparsity": None, "methods": None, "granularity": None}
            update["runtime"] = [runtime.model_copy(update=unfiltered) for runtime in manifest.runtime]
    return manifest.model_copy(update=update)


def _without_text(entry: Sparsify) -> Sparsify | None:
    """The entry with the allocations that read no text; None where there is none."""
    ways = [way for way in entry.allocation if not needs_calibration(entry.method, way)]
    return entry.model_copy(update={"allocation": ways}) if ways else None


def _random(model: Model) -> Model:
    return model.model_copy(update={"source": "random"})


def _one(entries: list[Sparsify]) -> Sparsify:
    """An entry of magnitude, or the first by that method, at one granularity and one sparsity."""
    first = next((entry for entry in entries if entry.method == "magnitude"), entries[0])
    if first.method != "magnitude":
        first = Sparsify(method="magnitude", sparsity=first.sparsity or [REHEARSED_SPARSITY])
    shares = first.sparsity or [REHEARSED_SPARSITY]
    share = REHEARSED_SPARSITY if REHEARSED_SPARSITY in shares else shares[len(shares) // 2]
    plain = {"granularity": ["layer"], "pattern": ["unstructured"], "block": None, "allocation": ["uniform"]}
    return first.model_copy(update={**plain, "sparsity": [share], "models": None})
