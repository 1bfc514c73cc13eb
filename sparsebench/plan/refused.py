"""What a run's GPUs cannot do, said before anything is made, by the function that refuses it when it is measured."""

from __future__ import annotations

from sparsebench import devices
from sparsebench.errors import UnsupportedError
from sparsebench.manifest.load import Loaded
from sparsebench.manifest.problems import Problem
from sparsebench.manifest.schema import Manifest
from sparsebench.models.quantized import FLOAT
from sparsebench.plan.cells import Cell
from sparsebench.plan.expand import Plan
from sparsebench.runtime import Setting, Workload, check_device


def refused(loaded: Loaded, manifest: Manifest, plan: Plan, device: str) -> dict[str, Problem]:
    """The cells that ``device`` would end as unsupported, by id: why, at the line of the manifest that asks for them."""
    known: dict[object, UnsupportedError | None] = {}  # the driver's tool is asked once a question, not once a cell
    found: dict[str, Problem] = {}
    for cell in plan.cells:
        if "engine" not in cell.settings:
            continue
        asked = cell.settings["engine"], cell.settings["ranks"], (cell.variant.values("quantize") or [FLOAT])[-1]
        ways = "hosts" in cell.settings, "alone" in cell.settings
        if (asked, ways) not in known:
            known[asked, ways] = _beside(*ways, device) or (None if ways[0] else _why(*asked, device))
        if why := known[asked, ways]:
            found[cell.id] = loaded.problem(_place(loaded, manifest, cell), why.message, "", why.hint or "")
    return found


def _beside(elsewhere: bool, asked: bool, device: str) -> UnsupportedError | None:
    """Why jobs with ``alone: device`` cannot run here; None where they can, or where none asks for it."""
    if not asked or (devices.is_gpu(device) and not elsewhere):
        return None
    why = "a run does not track those of a hostfile" if elsewhere else "on a CPU jobs share its cores and memory"
    return UnsupportedError(f"alone: device is for GPUs of this machine: {why}", "leave `alone` out")


def _why(engine: str, ranks: int, encoding: str, device: str) -> UnsupportedError | None:
    try:
        check_device(Setting(engine, ranks, Workload(), device=device), encoding)
    except UnsupportedError as error:
        return error
    return None


def _place(loaded: Loaded, manifest: Manifest, cell: Cell) -> tuple[str | int, ...]:
    """Where the first block stands that asks for a cell: its ``alone`` or ``ranks``, or the block where it has neither."""
    settings = cell.settings
    number = next(
        (
            number
            for number, block in enumerate(manifest.runtime or [])
            if settings["engine"] in block.engines
            and settings["ranks"] in block.ranks
            and settings.get("alone", "machine") == block.alone
            and any(settings["workload"] == workload.model_dump() for workload in block.workloads)
            and (block.models is None or cell.variant.model in block.models)
        ),
        0,
    )
    place: tuple[str | int, ...] = ("runtime", number)
    place = place if place in loaded.positions.values else ("runtime",)
    if "alone" in settings:
        return (*place, "alone")
    return (*place, "ranks") if settings["ranks"] > 1 else place
