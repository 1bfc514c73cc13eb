"""From a request to a plan, before any weights are fetched: load the manifest, resolve its names, check, expand.

A rehearsal is the same manifest with seeded random weights of the true architectures. It shows memory, time and disk
before tens of gigabytes are downloaded. Nothing is scored: weights are random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from sparsebench import bounded, devices, sources
from sparsebench.errors import UserError
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.problems import ManifestError, Problem
from sparsebench.manifest.recipes import models_of
from sparsebench.manifest.schema import Manifest, ManifestBenchmarks, ManifestModel, as_list
from sparsebench.models.files import building
from sparsebench.paths import home_path, ledger_path
from sparsebench.plan import checks
from sparsebench.plan.estimate import ModelSize, model_size
from sparsebench.plan.expand import DataInfo, Plan, count_cells, expand, recipes
from sparsebench.plan.fit import FitCheck, refusals
from sparsebench.plan.resolve import Resolver


@dataclass(frozen=True)
class PlanRequest:
    """What a person asks of a manifest on the command line.

    ``full`` rehearses every variant, not one. ``only`` are the cells to do, as pairs of a key and a value. ``jobs`` is
    the most that run at once; None: as many as fit.
    """

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
        return building.is_whole(self.plan.dense[model].folder(self.work))


def prepare(request: PlanRequest) -> Prepared:
    """Load, check and expand a manifest.

    Raises ManifestError with every problem at once, SourceError when a source cannot be found, and UserError for a
    device that is not here or that torch does not see, or for ``full`` without ``rehearse``.
    """
    if request.full and not request.rehearse:
        raise UserError("--full is of a rehearsal", "add --rehearse")
    loaded = checks.load(request.path)
    manifest = rehearsal(loaded.manifest, request.full) if request.rehearse else loaded.manifest
    _check_cell_count(loaded, manifest)
    device = devices.resolve(request.device or manifest.device)
    cache = sources.Cache(offline=request.offline)
    recipes_by_entry = [[*recipes(entry)] for entry in manifest.variants]
    steps = [step for entry in recipes_by_entry for recipe in entry for step in recipe]
    calibrated = any(step.settings.reads_text() for step in steps)
    resolver = Resolver(loaded, cache)
    resolved = resolver.resolve(manifest, calibrated or bool(manifest.outputs))
    problems = [*resolver.problems, *FitCheck(loaded, manifest, recipes_by_entry, resolved, cache).problems()]
    if problems:
        raise ManifestError(problems)
    manifest = resolved.manifest
    name = loaded.name + ("-rehearsal" if request.rehearse else "")
    plan = expand(manifest, name, resolved.revisions, DataInfo(resolved.calibration, resolved.documents))
    work = home_path(manifest.work_dir) if manifest.work_dir else cache.root / "work"
    sizes = {}
    for model in plan.models:
        folder = plan.dense[model.name].folder(work)
        sizes[model.name] = model_size(model, resolved.configs.get(model.name), folder)
    return Prepared(
        request=request,
        manifest=manifest,
        plan=plan,
        ledger=ledger_path(request.ledger, manifest.ledger),
        work=work,
        cache=cache,
        sizes=sizes,
        device=device,
        refused=refusals(loaded, manifest, plan, resolved.configs, device, request.executor),
        named=resolved.planned,
    )


def _check_cell_count(loaded: LoadedManifest, manifest: Manifest) -> None:
    """Refuse lists that multiply to more cells than anybody can measure, before they are expanded."""
    limit = max(bounded.CELLS, bounded.CELLS_A_MODEL * len(manifest.models))
    if (cells := count_cells(manifest)) > limit:
        message = f"the lists of `variants`, `benchmarks` and `runtime` multiply to {cells:,} cells"
        raise ManifestError(
            [loaded.problem(("variants",), message, f"at most {limit:,}", "shorten them, or split the manifest")]
        )


REHEARSED_SPARSITY = 0.9
"""The sparsity of a rehearsal, unless only others were asked for."""


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
        random_model = model.model_copy(update={"source": "random"})
        if identity(random_model) in map(identity, models):
            # Models of one shape would get one id, and its results would be filed under only one of the names.
            architecture = {**(model.architecture or {}), "_name_or_path": model.name}
            random_model = random_model.model_copy(update={"architecture": architecture})
        models.append(random_model)
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
    written_out = []
    for recipe in recipes(entry):
        if not any(step.settings.reads_text() or step.settings.text_keys or step.verb == "trim" for step in recipe):
            written_out.append([{step.verb: step.name, **step.settings.record(), **only} for step in recipe])
    return written_out


def _one_sparsity(entries: Sequence[Any]) -> dict[str, Any]:
    """Return magnitude pruning at one sparsity: REHEARSED_SPARSITY if it was asked for, else the middle one."""
    single_steps = [entry for entry, *more in map(as_list, entries) if not more and isinstance(entry, dict)]
    magnitudes = [entry for entry in single_steps if entry.get("prune") == "magnitude"]
    asked = next((entry["sparsity"] for entry in magnitudes if entry.get("sparsity")), REHEARSED_SPARSITY)
    sparsities = as_list(asked)
    middle = sparsities[len(sparsities) // 2]
    return {"prune": "magnitude", "sparsity": REHEARSED_SPARSITY if REHEARSED_SPARSITY in sparsities else middle}
