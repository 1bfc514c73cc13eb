"""From a request to a plan, before any weights are fetched: load the manifest, resolve its names, check, expand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparsebench import bounded, devices, sources
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.problems import ManifestError, Problem
from sparsebench.manifest.schema import Manifest
from sparsebench.models.files import building
from sparsebench.paths import home_path, ledger_path
from sparsebench.plan import checks
from sparsebench.plan.estimate import ModelSize, model_size
from sparsebench.plan.expand import DataInfo, Plan, count_cells, expand, recipes
from sparsebench.plan.fit import misfits, refusals
from sparsebench.plan.rehearse import rehearsal
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
        return building.whole(self.plan.dense[model].folder(self.work))


def prepare(request: PlanRequest) -> Prepared:
    """Load, check and expand a manifest.

    Raises ManifestError with every problem at once, SourceError when a source cannot be found, and UserError for a
    device that is not here or that torch does not see.
    """
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
    problems = [*resolver.problems, *misfits(loaded, manifest, recipes_by_entry, resolved, cache)]
    if problems:
        raise ManifestError(problems)
    manifest = resolved.manifest
    name = (manifest.name or request.path.stem) + ("-rehearsal" if request.rehearse else "")
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
    most = max(bounded.CELLS, bounded.CELLS_A_MODEL * len(manifest.models))
    if (cells := count_cells(manifest)) > most:
        message = f"the lists of `variants`, `benchmarks` and `runtime` multiply to {cells:,} cells"
        raise ManifestError(
            [loaded.problem(("variants",), message, f"at most {most:,}", "shorten them, or split the manifest")]
        )
