"""Which cells run and why.

These cells run: ``new``; ``skipped before``; ``refused before`` (by a run that had other GPUs, or fewer); and, with
--retry-failed, ``failed before``. These do not: ``done``; ``unsupported`` (with these versions, or by this machine's
GPUs); ``left out by --only``. In a run, those whose record is ``damaged`` run too.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from sparsebench.errors import RecordError, UnsupportedError, UserError
from sparsebench.manifest.nodes import read_yaml
from sparsebench.manifest.problems import did_you_mean
from sparsebench.plan.cells import Cell
from sparsebench.plan.preflight import PlanRequest, Prepared
from sparsebench.plan.selection import same_value, selects
from sparsebench.plan.stages import is_timed, stage_names
from sparsebench.records import file_problem, read_cell, record_key, statuses
from sparsebench.steps.registry import kinds

CELL_KEYS = ("task", "engine", "ranks")
VARIANT_KEYS = ("model", "method", "recipe")


class DecisionKind(StrEnum):
    """Why a cell runs or does not, as a plan shows it."""

    NEW = "new"
    SKIPPED = "skipped before"
    REFUSED = "refused before"
    FAILED = "failed before"
    DAMAGED = "damaged"
    DONE = "done"
    UNSUPPORTED = "unsupported"
    LEFT_OUT = "left out by --only"


RECORDED = (DecisionKind.DONE, DecisionKind.FAILED, DecisionKind.UNSUPPORTED)
"""Why a cell does not run that has a record, unless this machine cannot do it."""


@dataclass(frozen=True)
class Decision:
    """Whether a cell runs, and why; ``problem`` is what keeps this machine from doing it.

    ``refused`` is the reason to record for a cell that this machine cannot do, where no record says so yet.
    """

    cell: Cell
    runs: bool
    kind: DecisionKind
    problem: str = ""
    refused: str = ""

    @property
    def reason(self) -> str:
        """Why, with the problem, as a plan shows it."""
        return f"{self.kind}: {self.problem}" if self.problem else str(self.kind)


def decisions(ready: Prepared, records: Path, retry_failed: bool) -> list[Decision]:
    """Return a decision for every cell of the plan. ``records`` is the folder of records."""
    recorded = statuses(records)
    only = _values_by_key(ready)

    def decide(cell: Cell) -> Decision:
        status = recorded.get(record_key(cell, ready.device))
        if not _matches(cell, only):
            return Decision(cell, False, DecisionKind.LEFT_OUT)
        if status == "done":
            return Decision(cell, False, DecisionKind.DONE)
        if problem := ready.refused.get(cell.id):
            reason = str(UnsupportedError(problem.message, problem.hint)) if status != "unsupported" else ""
            return Decision(cell, False, DecisionKind.UNSUPPORTED, problem.message, reason)
        if status == "unsupported":
            refused = _refused_before(cell, ready.device, records)
            return Decision(cell, refused, DecisionKind.REFUSED if refused else DecisionKind.UNSUPPORTED)
        if status == "failed":
            return Decision(cell, retry_failed, DecisionKind.FAILED)
        return Decision(cell, True, DecisionKind.SKIPPED if status == "skipped" else DecisionKind.NEW)

    return [decide(cell) for cell in ready.plan.cells]


def _refused_before(cell: Cell, device: str, records: Path) -> bool:
    """Whether a run refused a timed cell before any job opened its model.

    This run may have more GPUs: a place has the same id with one and with eight. A refusal by a job stands, since a job
    may have seen one GPU of many.
    """
    try:
        return is_timed(cell.stage) and not read_cell(records, record_key(cell, device), "unsupported").get("content")
    except RecordError:
        return True


def verified(decided: list[Decision], records: Path, device: str) -> tuple[list[Decision], list[str]]:
    """Return the decisions, with those changed whose record is damaged or another cell's: these cells run.

    Also return what is wrong with each of these records.
    This reads the records of cells that do not run; ``decisions`` reads names alone.
    """
    recorded = statuses(records)
    checked, reasons = [], []
    for decision in decided:
        has_record = decision.kind in RECORDED and not decision.runs and not decision.problem
        status = recorded.get(record_key(decision.cell, device)) if has_record else None
        if status and (reason := file_problem(records, decision.cell, status, device)):
            reasons.append(reason)
            decision = replace(decision, runs=True, kind=DecisionKind.DAMAGED)
        checked.append(decision)
    return checked, reasons


def parse_only(words: list[str]) -> tuple[tuple[str, str], ...]:
    """Parse words such as ``model=opt-1.3b`` into pairs. Raises UserError for an unknown key, stage or sparsity."""
    pairs = []
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or name not in only_keys():
            hint = did_you_mean(name, only_keys()) or f"one of {', '.join(only_keys())}"
            raise UserError(f"--only {word}: not KEY=VALUE with a known key", hint)
        if name == "stage" and value not in stage_names():
            raise UserError(f"--only {word}: no such stage", f"one of {', '.join(stage_names())}")
        pairs.append((name, _sparsity(word, value) if name == "sparsity" else value))
    return tuple(pairs)


def only_keys() -> tuple[str, ...]:
    """Return the keys of --only: words of the cell and of its variant, each verb of a step and its fields."""
    setting_names = {
        name: None
        for kind in kinds().values()
        for settings in kind.classes().values()
        for name in settings.model_fields
    }
    return (*VARIANT_KEYS, "stage", *CELL_KEYS, *kinds(), *setting_names)


def _sparsity(word: str, value: str) -> str:
    """Convert a sparsity, a share or in percent, into a share. Raises UserError for another word."""
    with suppress(ValueError):
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        if 0 <= share <= 1:
            return str(share)
    raise UserError(f"--only {word}: not a sparsity", "a share or percent, such as 0.5 or 50%")


def unmatched(ready: Prepared) -> list[str]:
    """Return the words of --only, such as ``sparsity=0.7``, that no cell of the plan matches.

    Raises UserError, naming them, where no cell matches all of --only.
    """
    only, cells = _values_by_key(ready), ready.plan.cells
    meanings = {(name, word): {name: _meanings(ready, name, word)} for name, word in ready.request.only}
    missing = ["=".join(pair) for pair, meant in meanings.items() if not any(_matches(cell, meant) for cell in cells)]
    if only and not any(_matches(cell, only) for cell in cells):
        culprits = missing or ["=".join(pair) for pair in meanings]
        raise UserError(
            f"--only matches no cell of the manifest: none has {' and '.join(culprits)}",
            f"see all: {command_like('plan', replace(ready.request, only=()))}",
        )
    return missing


def _values_by_key(ready: Prepared) -> dict[str, list[Any]]:
    """Return by key the values that --only asks for. Those of one key are alternatives; different keys must all hold."""
    values_by_key: dict[str, list[Any]] = {}
    for name, word in ready.request.only:
        values_by_key.setdefault(name, []).extend(_meanings(ready, name, word))
    return values_by_key


def _meanings(ready: Prepared, name: str, word: str) -> list[Any]:
    """Return a value of --only as it was typed, as a manifest would read it and, for a file, text or teacher, as the
    plan names it."""
    value, _, problems = read_yaml(word, "--only")
    return [word, ready.named.get((name, word), word), *([] if problems else [value])]


def command_like(verb: str, request: PlanRequest, more: Sequence[str] = ()) -> str:
    """Return the command that asks ``plan``, ``status`` or ``run`` for the same cells; ``more`` are options of run."""
    words = ["sparsebench", verb, str(request.path)]
    words += ["--rehearse"] if request.rehearse else []
    words += ["--full"] if request.full else []
    words += ["--device", request.device] if request.device else []
    words += ["--ledger", str(request.ledger)] if request.ledger else []
    if verb != "status":
        words += [word for key, value in request.only for word in ("--only", f"{key}={value}")]
        words += ["--executor", request.executor] if request.executor != "local" else []
        words += ["--offline"] if request.offline else []
    if verb == "run":
        words += ["--jobs", str(request.jobs)] if request.jobs else []
        words += more
    return shlex.join(words)


def _matches(cell: Cell, only: Mapping[str, list[Any]]) -> bool:
    """Return whether a cell has one of the values of every key of --only."""
    words = {key: values for key, values in only.items() if key == "stage" or key in (*CELL_KEYS, *VARIANT_KEYS)}
    selection = {key: values for key, values in only.items() if key not in words}
    if not cell.variant.values("sparsity") and any(same_value(0.0, value) for value in selection.get("sparsity", ())):
        del selection["sparsity"]  # nothing was pruned, which is what the tables show
    if "method" in only and (step := cell.variant.named_step):
        selection.setdefault(step.verb, [step.name])  # the settings count at the step that gives the method its name
    return all(_has_word(cell, key, values) for key, values in words.items()) and selects(selection, cell.variant.steps)


def _has_word(cell: Cell, name: str, values: list[Any]) -> bool:
    """Return whether a cell has one of ``values`` under a key that says something of itself or its whole variant."""
    if name == "stage":
        return cell.stage in values
    if name in CELL_KEYS:
        return name in cell.settings and str(cell.settings[name]) in values
    if name == "method":  # tables name it with its allocation: ``wanda+owl``
        allocations = [value for value in cell.variant.values("allocation")[-1:] if value != "uniform"]
        method = cell.variant.method
        return method in values or any(f"{method}+{allocation}" in values for allocation in allocations)
    return str(getattr(cell.variant, name)) in values
