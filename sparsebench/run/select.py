"""Which cells run and why.

These cells run: ``new``; ``not reached yet``; ``changed`` (the last plan asked the same of another source, file or
version); ``skipped before``; ``refused before`` (by a run that had other GPUs, or fewer); and, with --retry-failed,
``failed before``. These do not: ``done``; ``unsupported`` (with these versions, or by this machine's GPUs); ``left out
by --only``. In a run, those whose record is ``damaged`` run too.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import LedgerError, RecordError, UnsupportedError, UserError
from sparsebench.manifest.nodes import read
from sparsebench.plan.cells import Cell, Variant
from sparsebench.plan.preflight import Prepared
from sparsebench.plan.stages import names, same, timed
from sparsebench.records import file_problem, key, read_cell, statuses
from sparsebench.steps.registry import kinds

LEFT_OUT = "left out by --only"
RECORDED = ("done", "failed before", "unsupported")
"""Why a cell does not run that has a record."""
CELL_KEYS = ("task", "engine", "ranks")
VARIANT_KEYS = ("model", "method", "recipe")


@dataclass(frozen=True)
class Decision:
    """Whether a cell runs, and why.

    ``refused`` is the reason to record for a cell that this machine cannot do, where no record says so yet.
    """

    cell: Cell
    runs: bool
    why: str
    refused: str = ""


def decisions(ready: Prepared, records: Path, retry_failed: bool) -> list[Decision]:
    """Return a decision for every cell of the plan. ``records`` is the folder of records."""
    known = statuses(records)
    before = _previous(records / f"plan-{ready.plan.manifest}.json")
    planned = {cell.id for cell in ready.plan.cells}
    # A cell whose id the plan still has did not become another cell.
    asked = {question for cell_id, question in before.items() if cell_id not in planned}
    wanted = _wanted(ready)

    def decide(cell: Cell) -> Decision:
        status = known.get(key(cell, ready.device))
        if not all(_matches(cell, name, values) for name, values in wanted.items()):
            return Decision(cell, False, LEFT_OUT)
        if status == "done":
            return Decision(cell, False, "done")
        if problem := ready.refused.get(cell.id):
            reason = str(UnsupportedError(problem.message, problem.hint)) if status != "unsupported" else ""
            return Decision(cell, False, f"unsupported: {problem.message}", reason)
        if status == "unsupported":
            refused = _refused_before(cell, ready.device, records)
            return Decision(cell, refused, "refused before" if refused else "unsupported")
        if status == "failed":
            return Decision(cell, retry_failed, "failed before")
        return Decision(cell, True, "skipped before" if status == "skipped" else _why_open(cell, before, asked))

    return [decide(cell) for cell in ready.plan.cells]


def _refused_before(cell: Cell, device: str, records: Path) -> bool:
    """Whether a run refused a timed cell before any job opened its model.

    This run may have more GPUs: a place has the same id with one and with eight. A refusal by a job stands, since a job
    may have seen one GPU of many.
    """
    try:
        return timed(cell.stage) and not read_cell(records, key(cell, device), "unsupported").get("content")
    except RecordError:
        return True


def verified(decided: list[Decision], records: Path, device: str) -> tuple[list[Decision], list[str]]:
    """Return the decisions by which a cell runs whose record is damaged or another cell's, and what is wrong with each.

    This reads the records of cells that do not run; ``decisions`` reads names alone.
    """
    known = statuses(records)
    checked, reasons = [], []
    for decision in decided:
        status = known.get(key(decision.cell, device)) if decision.why in RECORDED and not decision.runs else None
        if status and (reason := file_problem(records, decision.cell, status, device)):
            reasons.append(reason)
            decision = replace(decision, runs=True, why="damaged")
        checked.append(decision)
    return checked, reasons


def parse_only(words: list[str]) -> tuple[tuple[str, str], ...]:
    """Parse words such as ``model=opt-1.3b`` into pairs. Raises UserError for an unknown key, stage or sparsity."""
    pairs = []
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or name not in keys():
            close = difflib.get_close_matches(name, keys(), n=1)
            hint = f"did you mean {close[0]}={value or '…'}?" if close else f"one of {', '.join(keys())}"
            raise UserError(f"--only {word}: not KEY=VALUE with a known key", hint)
        if name == "stage" and value not in names():
            raise UserError(f"--only {word}: no such stage", f"one of {', '.join(names())}")
        pairs.append((name, _sparsity(word, value) if name == "sparsity" else value))
    return tuple(pairs)


def keys() -> tuple[str, ...]:
    """Return the keys that select cells: words of the cell and of its variant, each verb of a step and its fields."""
    fields = {
        name: None
        for kind in kinds().values()
        for settings in kind.classes().values()
        for name in settings.model_fields
    }
    return (*VARIANT_KEYS, "stage", *CELL_KEYS, *kinds(), *fields)


def _sparsity(word: str, value: str) -> str:
    """Convert a sparsity, a share or in percent, into a share. Raises UserError for another word."""
    with suppress(ValueError):
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        if 0 <= share <= 1:
            return str(share)
    raise UserError(f"--only {word}: not a sparsity", "a share or percent, such as 0.5 or 50%")


def _wanted(ready: Prepared) -> dict[str, list[Any]]:
    """Return by key the values that --only asks for. Those of one key are alternatives; different keys must all hold.

    Each is there as it was typed, as a manifest would read it and, for a file, text or teacher, as the plan names it.
    """
    wanted: dict[str, list[Any]] = {}
    for name, word in ready.request.only:
        value, _, problems = read(word, "--only")
        wanted.setdefault(name, []).extend([word, ready.named.get((name, word), word), *([] if problems else [value])])
    return wanted


def _matches(cell: Cell, name: str, values: list[Any]) -> bool:
    """Return whether a cell has one of ``values`` under a key of --only."""
    if name == "stage":
        return cell.stage in values
    if name in CELL_KEYS:
        return name in cell.settings and str(cell.settings[name]) in values
    if name in VARIANT_KEYS:
        named = str(getattr(cell.variant, name)) in values
        return named or (name == "method" and _with_allocation(cell.variant) in values)
    given = cell.variant.values(name) or ([0.0] if name == "sparsity" else [])
    return any(same(setting, value) for setting in given for value in values)


def _with_allocation(variant: Variant) -> str:
    """Return the method as tables name it: ``wanda+owl``."""
    allocation = next(iter(variant.values("allocation")[-1:]), "uniform")
    return variant.method if allocation == "uniform" else f"{variant.method}+{allocation}"


def _why_open(cell: Cell, before: Mapping[str, str], asked: set[str]) -> str:
    """Say why a cell has no record: planned before and not reached, or asked before under another id, or new."""
    if cell.id in before:
        return "not reached yet"
    return "changed" if asked and _question(cell.variant, cell.stage, cell.settings) in asked else "new"


_CONTENT = re.compile(r"#(?:sha256|content)=[^\"]*")


def _question(variant: Variant, stage: str, settings: Mapping[str, Any]) -> str:
    """Return in one line what a cell asks: what its id covers, except versions and the content of sources and files."""
    without = {key: value for key, value in settings.items() if key != "source"}
    if "own" in without:
        without["own"] = {key: value for key, value in without["own"].items() if key != "content"}
    steps = [step.record() for step in variant.steps]
    asked = (variant.model, variant.family, variant.dtype, variant.seed, variant.calibration, steps, stage, without)
    return _CONTENT.sub("", json.dumps(asked, sort_keys=True))


def _previous(path: Path) -> dict[str, str]:
    """Return by id what the cells of the manifest's last plan asked. Raises LedgerError for a file that is no plan."""
    if not path.is_file():
        return {}
    again = "remove the file: the next run writes it again"
    plan = bounded.read_object(path, LedgerError, again, bounded.PLAN)
    try:
        return {
            str(cell["cell_id"]): _question(Variant.read(cell["variant"]), cell["stage"], cell["settings"])
            for cell in plan["cells"]
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"{path}: not a plan as sparsebench writes it ({error!r})", again) from error
