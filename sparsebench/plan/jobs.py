"""Cells into jobs: those that share what is expensive share a process; a sweep's jobs follow one another.

Order within a model: fetch and prepare it, the dense variant's jobs, then each sweep (make, assess, score, time,
weigh). Timed jobs wait until nothing else can run, and the folders of what they time wait with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sparsebench.plan.cells import TIMED, Cell, Job, Variant
from sparsebench.plan.expand import Plan
from sparsebench.plan.fingerprint import digest

ORDER = ("make", "assess", "benchmarks", "latency", "memory")


def jobs(plan: Plan, cells: Iterable[Cell], present: Callable[[Variant], bool]) -> list[Job]:
    """The jobs that do ``cells``, in order; ``present`` tells which variants' folders exist already."""
    sweeps: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        sweeps.setdefault(_sweep(cell.variant), []).append(cell)
    prepared: dict[str, Job] = {}
    found: list[Job] = []
    for (model, *_), group in sweeps.items():
        dense = plan.dense[model]
        if model not in prepared:
            prepared[model] = Job(digest(["prepare", dense.id]), "prepare", (), makes=(dense,))
            if not present(dense):
                found.append(prepared[model])
        before = () if present(dense) else (prepared[model].id,)
        found += _of_sweep(group, before, present)
    return found


def _sweep(variant: Variant) -> tuple[str, ...]:
    """What versions made in one pass have in common. The dense model's activations serve any method."""
    if variant.propagate == "dense":
        return variant.model, "calibrated", variant.calibration
    return variant.model, variant.method, variant.granularity, variant.allocation, variant.calibration


def _of_sweep(cells: list[Cell], before: tuple[str, ...], present: Callable[[Variant], bool]) -> list[Job]:
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_share(cell), []).append(cell)
    ordered = sorted(groups.items(), key=lambda item: ORDER.index(str(item[0][0])))
    found = [_job(str(key[0]), tuple(group), before) for key, group in ordered]
    variants = {cell.variant.id: cell.variant for cell in cells if not cell.variant.is_dense}
    recorded = {cell.variant.id for cell in cells if cell.stage == "sparsify"}
    missing = tuple(variant for variant in variants.values() if variant.id in recorded or not present(variant))
    if not missing:
        return found
    made = found.pop(0) if found and found[0].kind == "make" else _job("make", (), before)
    made = replace(made, id=digest(["make", [variant.id for variant in missing]]), makes=missing)
    return [made, *(replace(job, after=(*before, made.id)) for job in found)]


def _share(cell: Cell) -> tuple[object, ...]:
    """The key of the process that a cell shares with others of its sweep."""
    setting = cell.settings
    match cell.stage:
        case "sparsify":
            return ("make",)
        case "structure" | "storage":
            return ("assess",)
        case "benchmarks":
            return ("benchmarks", cell.variant.id)
        case "latency":
            return ("latency", digest({key: value for key, value in setting.items() if key != "against"}))
        case "memory":
            return ("memory", cell.id)


def _job(kind: str, cells: tuple[Cell, ...], before: tuple[str, ...]) -> Job:
    name = digest([kind, [cell.id for cell in cells]])
    return Job(name, kind, cells, after=before, exclusive=kind in TIMED)
