"""Finds the cells that a run's engines, device or executor cannot do, before anything is made."""

from __future__ import annotations

from sparsebench import devices
from sparsebench.errors import Refusal
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.nodes import At
from sparsebench.manifest.problems import Problem
from sparsebench.manifest.schema import Manifest
from sparsebench.models.files.quantized import FLOAT
from sparsebench.plan.cells import Cell
from sparsebench.plan.expand import Plan
from sparsebench.plan.fit import Configs
from sparsebench.plan.stages import block_of
from sparsebench.runtime import Setting, Workload, engine_refusal


def refusals(
    loaded: LoadedManifest, manifest: Manifest, plan: Plan, configs: Configs, device: str, executor: str = "local"
) -> dict[str, Problem]:
    """Return the cells that would end as unsupported on ``device`` or with ``executor``, by id.

    Each has its reason, at the line of the manifest that asks for it. ``configs`` are the dense models' config.json:
    what a step changes in it shows when the cell is measured.
    """
    known: dict[object, Refusal | None] = {}  # the driver's tool is run once per question, not once per cell
    problems: dict[str, Problem] = {}
    for cell in plan.cells:
        if "engine" not in cell.settings:
            continue
        ranks = 1 if cell.nodes else cell.settings["ranks"]  # how many GPUs other nodes have is not known here
        engine, encoding = cell.settings["engine"], cell.variant.encoding or FLOAT
        workload, shares_machine = Workload(**cell.settings["workload"]), "alone" in cell.settings
        question = engine, ranks, encoding, workload, cell.variant.model, cell.nodes, shares_machine
        if question not in known:
            setting = Setting(engine, ranks, workload, device=device)
            config = configs.get(cell.variant.model, {})
            known[question] = _spread(cell.nodes, shares_machine, device, executor) or engine_refusal(
                config, encoding, setting
            )
        if refusal := known[question]:
            problems[cell.id] = loaded.problem(_path(manifest, cell), refusal.reason, "", refusal.way_out)
    return problems


def _spread(nodes: int, shares_machine: bool, device: str, executor: str) -> Refusal | None:
    """Return why ranks cannot be spread over ``nodes``, or a timed job not share its machine; None where they can."""
    if nodes and executor != "ray":
        return Refusal(f"nodes: {nodes}: only with --executor ray", "add --executor ray, or leave `nodes` out")
    if not shares_machine or (devices.is_gpu(device) and not nodes):
        return None
    why = "several nodes have theirs" if nodes else "on a CPU jobs share its cores and memory"
    return Refusal(f"alone: device is for GPUs of this machine: {why}", "leave `alone` out")


def _path(manifest: Manifest, cell: Cell) -> At:
    """Return the path of the first runtime block that asks for a cell, or of its ``alone``, ``nodes`` or ``ranks``."""
    path: At = ("runtime", (manifest.runtime or []).index(block_of(manifest, cell)))
    for key in ("alone", "nodes"):
        if key in cell.settings:
            return (*path, key)
    return (*path, "ranks") if cell.settings["ranks"] > 1 else path
