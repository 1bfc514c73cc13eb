"""Where a record was made, whether it is as it was made, and whether its parts fit each other.

A workspace is a folder with ledgers, their records and logs. It has a random id, which its records carry as their
``origin``. Its checksum is the sha256 of all else that it says, as JSON without spaces. It stands first, so that
``{`` and what follows the checksum is the text that it was taken of. Neither is a signature: a forger can write both.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from sparsebench.benchmarks import ScoreResult, benchmark_of
from sparsebench.environment import environment_id
from sparsebench.errors import LedgerError
from sparsebench.paths import create
from sparsebench.plan.stages import is_timed, stage_names
from sparsebench.runtime.results import LatencyResult, MemoryResult
from sparsebench.steps.contract import StepReport
from sparsebench.storage.measure import StorageResult
from sparsebench.structure.assess import StructureResult
from sparsebench.structure.outputs import OutputsResult

ORIGIN_FILE = ".origin"
"""The file in a workspace that holds its id."""
_SEALED = re.compile(r'\{"checksum":"(\w{64})",(.*)', re.DOTALL)
"""A record's text: its checksum, and the text that this was taken of but for the brace."""
_RESULTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "make": (StepReport, ()),
    "structure": (StructureResult, ("absolute", "relative")),
    "storage": (StorageResult, ()),
    "outputs": (OutputsResult, ()),
    "benchmarks": (ScoreResult, ("task",)),
    "latency": (LatencyResult, ("engine", "ranks")),
    "memory": (MemoryResult, ("engine", "ranks")),
}
"""Of each stage, the type of its result, and the settings that the result repeats."""


def origin(workspace: Path, create_it: bool = False) -> str:
    """Return the id of the workspace in this folder; empty where it has none, unless that is to be created.

    Raises LedgerError for a file that holds no id.
    """
    path = workspace / ORIGIN_FILE
    if create_it and not path.exists():
        workspace.mkdir(parents=True, exist_ok=True)
        with create(path, "x") as file:
            file.write(secrets.token_hex(8))
    if not path.is_file():
        return ""
    identifier = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{16}", identifier):
        raise LedgerError(f"{path}: not the id of a workspace", "remove it: its own records then count as a stranger's")
    return identifier


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its checksum, which stands first."""
    content = {key: value for key, value in record.items() if key != "checksum"}
    text = json.dumps(content, separators=(",", ":"))
    return {"checksum": hashlib.sha256(text.encode()).hexdigest(), **content}


def is_untouched(text: str) -> bool:
    """Return whether a record's text is, to the byte, the one that its checksum was taken of."""
    match = _SEALED.fullmatch(text.rstrip("\n"))
    return match is not None and hashlib.sha256(b"{" + match[2].encode()).hexdigest() == match[1]


def is_intact(record: Mapping[str, Any], text: str) -> bool:
    """Return whether a record with a checksum says what it said when it was made, perhaps with other spaces."""
    return is_untouched(text) or sealed(record)["checksum"] == record["checksum"]


def record_problem(record: Mapping[str, Any]) -> str | None:
    """Say what in a cell's record does not fit the rest of it; None where all does.

    Raises LookupError, TypeError, ValueError or AttributeError for a value that is not of the type that it must have.
    """
    stage, cell_id, environment = record["stage"], record["cell_id"], record["environment"]
    if stage not in stage_names():
        return f"there is no stage {stage!r}"
    datetime.fromisoformat(record["started_at"])
    keys = {cell_id, f"{cell_id}-{record['where']['id']}"} if is_timed(stage) else {cell_id}
    if not re.fullmatch(r"[\w-]+", record["key"]) or record["key"] not in keys:
        return f"its key {record['key']!r} is not that of its cell {cell_id!r}"
    if environment["id"] != environment_id(environment):
        return f"the id of its environment {environment['id']!r} is not that of what the environment says"
    if environment["machine"] != record["where"]["machine"]:
        return "it names two machines"
    return _result_problem(stage, record["settings"], record["result"]) if record["status"] == "done" else None


def _result_problem(stage: str, settings: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    kind, repeated = _RESULTS[stage]
    required = (field.name for field in fields(kind) if field.default is MISSING)
    if missing := [name for name in required if name not in result]:
        return f"its result is not one of {stage}: it has no {', '.join(missing)}"
    for name in repeated:
        if result[name] != settings[name]:
            return f"its result is of {name} {result[name]!r}, its settings are of {settings[name]!r}"
    if stage == "storage" and not {size["format"] for size in result["sizes"]} >= set(settings["formats"]):
        return "its result lacks a format of its settings"
    return _score_problem(settings, result) if stage == "benchmarks" else None


def _score_problem(settings: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    benchmark, limit = benchmark_of(settings), settings["limit"]
    if benchmark and benchmark.metric and result["metric"] != benchmark.metric:
        return f"its metric is {result['metric']!r}, that of {benchmark.name} is {benchmark.metric!r}"
    if limit is None and result["limited"]:
        return "its score is of some documents, its settings are of all"
    # How many tasks a group of a folder has is not known here.
    if limit is not None and benchmark and benchmark.metric and result["n"] > limit * benchmark.parts:
        return f"its score is of {result['n']} documents, its settings are of {limit}"
    return None
