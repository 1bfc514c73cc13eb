"""An experiment with calibrated methods and perplexity, as a run would leave it: numbers made up but plausible."""

import json
import math
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from sparsebench import records
from sparsebench.benchmarks import Outcome, ScoreResult
from sparsebench.plan.cells import Cell, Variant
from tests.ledger import samples

WINDOWS, TOKENS = 24, 1023
DENSE = 25.0
LOSS = {
    "random": (12, 0.5),
    "magnitude": (14, 4),
    "wanda": (9, 5),
    "ria": (8.8, 5),
    "sparsegpt": (6.5, 5),
    "alps": (6, 5),
}
"""Of each method a and b: pruning multiplies perplexity by exp(a · s^b)."""
CALIBRATED: dict[str, Any] = {
    "models": [{"name": "smol", "source": "path:smol", "family": "decoder", "dtype": "bfloat16"}],
    "variants": [
        {"prune": "magnitude", "sparsity": [0.5, 0.9]},
        {"prune": "random", "sparsity": [0.5, 0.9]},
        {"prune": "wanda", "sparsity": [0.5, 0.9], "allocation": ["uniform", "owl"]},
        {"prune": "wanda", "sparsity": [0.5], "propagate": "dense"},
        {"prune": "wanda", "pattern": "2:4"},
        {"prune": "ria", "sparsity": [0.5, 0.9]},
        {"prune": "sparsegpt", "sparsity": [0.5, 0.9]},
        {"prune": "sparsegpt", "pattern": "4x4", "sparsity": [0.5, 0.9]},
        {"prune": "alps", "sparsity": [0.5, 0.9]},
    ],
    "calibration": {"samples": 8, "length": 64},
    "benchmarks": {"decoder": [{"task": "perplexity"}, {"task": "piqa", "limit": 60}]},
    "runtime": None,
    "structure": None,
}


def perplexity(variant: Variant) -> float:
    """What the variant would score."""
    factor, power = LOSS.get(variant.method, (0, 1))
    worse = 1.0 if variant.pruning_setting("pattern") == "unstructured" else 1.4
    worse *= 0.95 if variant.pruning_setting("allocation") == "owl" else 1.0
    return DENSE * math.exp(worse * factor * variant.pruning_setting("sparsity") ** power)


def scored(cell: Cell) -> ScoreResult:
    """Windows of text that are hard or easy for all variants alike, and a little for each by itself."""
    shared, own = samples._generator("windows"), samples._generator(samples.lasting_name(cell))
    noise = 0.15 * shared.normal(size=WINDOWS) + 0.01 * own.normal(size=WINDOWS)
    noise -= noise.mean()
    values = [TOKENS * (math.log(perplexity(cell.variant)) + shift) for shift in noise]
    score = math.exp(math.fsum(values) / (WINDOWS * TOKENS))
    outcomes = tuple(Outcome(str(at), f"w{at}", value, float(TOKENS)) for at, value in enumerate(values))
    protocol: dict[str, str | int | float] = {"window": 1024, "stride": 1024, "bos": "none"}
    protocol["scored_tokens"] = WINDOWS * TOKENS
    limited = cell.settings["limit"] is not None
    return ScoreResult("perplexity", "perplexity", score, 0.5, WINDOWS, limited, None, outcomes, protocol)


def result(cell: Cell) -> Any:
    """A result of the cell's stage."""
    if cell.settings.get("task") == "perplexity":
        return scored(cell)
    found = samples.result(cell)
    if cell.stage == "make" and cell.variant.calibration:
        said = "damping raised to 0.1" if cell.variant.method == "sparsegpt" else ""
        found = replace(found, note=said, calibration_tokens=512, calibration_sha256="ab" * 32)
    return found


def sample(name: str = "calibrated", **changes: Any) -> list[dict[str, Any]]:
    """The plan's record and one record a cell, as JSON gives them back."""
    made = samples.plan(samples.manifest(**(CALIBRATED | changes)), name)
    found: list[dict[str, Any]] = [samples.plan_record(made)]
    for number, cell in enumerate(made.cells):
        outcome = records.CellOutcome(
            "done", asdict(result(cell)), None, samples.START + timedelta(seconds=number), 1.5
        )
        found.append(records.make(cell, name, outcome, "cpu"))
    return json.loads(json.dumps(found))
