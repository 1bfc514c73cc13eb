"""What must hold of a record before a ledger or a run takes it: its score is what its outcomes give, its id is its own.

``records`` has checked before that it is as it was made. Tolerances: ``SCORE_TOLERANCE`` and ``DRAWN_TOLERANCE``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench.benchmarks.contract import mean_stderr
from sparsebench.benchmarks.statistics import Floats, pooled, ratio
from sparsebench.errors import RecordError, SparsebenchError
from sparsebench.ledger import statistics
from sparsebench.ledger.statistics import Metric
from sparsebench.ledger.statistics.resampling import POOLINGS, WITHOUT_DRAWS
from sparsebench.plan import fingerprint
from sparsebench.records import Reject, located_records, raise_error, statuses, write

SCORE_TOLERANCE = 1e-6
"""By which share (of 1, if that is more) a score and its standard error may differ from what the outcomes give."""
DRAWN_TOLERANCE = 0.2
"""The same for a standard error that is drawn, of a metric that needs all documents at once."""
_HINT = "copy it again; if it stays so, distrust where it comes from"


def check_score(record: Mapping[str, Any], where: str) -> None:
    """Raise RecordError, naming ``where``, for a score that its own outcomes do not give.

    A metric that the ledger does not know is exempt: its score gets no interval where the mean is another number.
    """
    if record.get("stage") != "benchmarks" or record["status"] != "done":
        return
    try:
        problem = _score_problem(record["result"])
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        problem = f"not a score as sparsebench writes it ({str(error)[:200]!r})"
    if problem:
        raise RecordError(f"{where}: {problem}", _HINT)


def unbundle(bundled: Path, folder: Path, reject: Reject = raise_error) -> tuple[int, int]:
    """Write the records of a bundle as files, so that a run goes on from them; return how many came and were there.

    Records that are there stay. Plans are left out, since a run writes its own. Of one cell the first record counts: a
    bundle may hold an older one that a kill has left, behind the one that is done. ``reject`` is called for each record
    that no run here can go on from; without it, the first raises RecordError.
    """
    recorded, added, already_there = statuses(folder).keys(), set[str](), 0
    for where, record in located_records([bundled], reject):
        if record.get("kind") == "plan":
            continue
        try:
            check_score(record, where)
            _check_id(record, where)
        except RecordError as error:
            reject(error)
            continue
        if record["key"] in recorded:
            already_there += 1
        elif record["key"] not in added:
            write(folder, record)
            added.add(record["key"])
    return len(added), already_there


def _check_id(record: Mapping[str, Any], where: str) -> None:
    """Raise RecordError for a record whose ``cell_id`` is not what this program makes of what the record asks.

    Such an id is of another version or library, so that no run here looks for it, or it is another cell's.
    """
    try:
        json.dumps(record, allow_nan=False)
        computed_id = fingerprint.cell_id(record["stage"], record["variant"]["id"], record["settings"])
    except (LookupError, TypeError, ValueError, AttributeError, SparsebenchError) as error:
        raise RecordError(f"{where}: not a record as sparsebench writes it ({error!r})", _HINT) from error
    if computed_id != record["cell_id"]:
        raise RecordError(
            f"{where}: its cell_id {record['cell_id']!r} is not that of its settings with these versions ({computed_id!r})",
            "a run here makes it anew; `sparsebench ingest` reads records of other versions",
        )


def _score_problem(result: Mapping[str, Any]) -> str | None:
    """Say what of a score its outcomes do not give; None where they give all."""
    outcomes, score = result["outcomes"], float(result["score"])
    # One document does not show how documents vary. Older records say 0 there.
    stderr = 0.0 if len(outcomes) == 1 and result["stderr"] is None else float(result["stderr"])
    if result["n"] != len(outcomes):
        return f"a score of {result['n']} documents with the outcomes of {len(outcomes)}"
    if not (math.isfinite(score) and math.isfinite(stderr)):
        return f"a score of {score!r} with a standard error of {stderr!r}"
    metric = Metric.named(result["metric"])
    if metric.scale == "unknown":
        return None
    values = np.array([outcome["value"] for outcome in outcomes], dtype=np.float64)
    labels = np.array([outcome["label"] for outcome in outcomes], dtype=np.float64)  # None becomes NaN
    if not statistics.reproduces_score(result["metric"], score, values, labels):
        return f"its {result['metric']} of {score!r} is not what its outcomes give"
    accepted = _stderrs(metric.pooling, score, values, labels) or [0.0]
    if any(abs(computed - stderr) <= _tolerance(metric.pooling, computed) for computed in accepted):
        return None
    return f"its standard error of {stderr!r} should be {accepted[0]!r}"


def _tolerance(pooling: str, stderr: float) -> float:
    return SCORE_TOLERANCE * max(1.0, stderr) if pooling in WITHOUT_DRAWS else DRAWN_TOLERANCE * stderr


def _stderrs(pooling: str, score: float, values: Floats, labels: Floats) -> list[float]:
    """Return the standard errors that a record may have: first as the benchmarks compute it, then as they once did.

    For one document there is none.
    """
    errors: tuple[float | None, ...] = (mean_stderr(values.tolist()),)
    if pooling not in WITHOUT_DRAWS:
        errors = (pooled(POOLINGS[pooling], values, labels)[1],)
    elif pooling == "per symbol":
        errors = (ratio(values.tolist(), labels.tolist())[1],)
    elif pooling == "per token":
        # Older records weigh windows alike, however many tokens each has.
        errors = (ratio(values.tolist(), labels.tolist())[1], mean_stderr((values / labels).tolist()))
    scale = score if pooling == "per token" else 1.0
    return [scale * error for error in errors if error is not None]
