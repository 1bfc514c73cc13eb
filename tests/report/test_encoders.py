"""The report on an encoder's rank correlation and pseudo-perplexity."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench import records
from sparsebench.benchmarks import Outcome, ScoreResult
from sparsebench.benchmarks.statistics import pooled, spearman
from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.plan.cells import Cell
from sparsebench.report import build
from tests.ledger import samples
from tests.report.reading import whole


def scored(cell: Cell) -> ScoreResult:
    """Windows of text and pairs that a pruned model scores worse."""
    task, n, worse = cell.settings["task"], 60, 3 * cell.variant.pruning_setting("sparsity")
    noise = samples._generator("shared").normal(size=n)
    own = samples._generator(samples.lasting_name(cell)).normal(size=n)
    if task == "pseudo_perplexity":
        values = 126 * (1.5 + worse + 0.1 * noise + 0.01 * own)
        score, labels = math.exp(values.sum() / (126 * n)), np.full(n, 126.0)
        protocol: dict[str, Any] = {"window": 128, "scored_tokens": 126 * n, "likelihood": "pseudo, word-l2r"}
    else:
        labels = noise
        values = noise + (0.3 + worse) * own
        score, protocol = pooled(spearman, values, labels)[0], {}
    outcomes = tuple(
        Outcome(str(at), f"d{at}", float(value), float(label))
        for at, (value, label) in enumerate(zip(values, labels, strict=True))
    )
    metric, chance = ("spearman", 0.0) if task == "stsb_sts" else (task, None)
    return ScoreResult(task, metric, score, 0.1, n, False, chance, outcomes, protocol)


def test_both_are_explained_compared_and_said(tmp_path: Path) -> None:
    experiment = samples.manifest(
        models=[{"name": "mini", "source": "path:mini", "family": "encoder", "dtype": "float32"}],
        variants=[{"prune": "magnitude", "sparsity": [0.5, 0.9]}],
        benchmarks={"encoder": [{"task": "stsb_sts"}, {"task": "pseudo_perplexity"}]},
        runtime=None,
        structure=None,
    )
    made = samples.plan(experiment)
    found = [samples.plan_record(made)]
    for cell in made.cells:
        result = scored(cell) if cell.stage == "benchmarks" else samples.result(cell)
        found.append(
            records.make(cell, "sample", records.CellOutcome("done", asdict(result), None, samples.START, 1.0), "cpu")
        )
    ledger = tmp_path / "ledger.duckdb"
    Ledger(ledger).ingest(json.loads(json.dumps(found)))
    text = whole(build(ledger, tmp_path / "report.md", tmp_path / "figures"))
    assert "**spearman** is rank correlation" in text and "**pseudo_perplexity** is" in text
    assert "all 60 windows of text" in text
    assert "windows of 128 tokens (whole words between special tokens), 7,560 tokens scored" in text
    rows = query.run(ledger, "SELECT task, verdict, retained FROM vs_dense ORDER BY ALL").rows
    assert [row[:2] for row in rows] == [
        (task, "worse") for task in ("pseudo_perplexity", "stsb_sts") for _ in range(2)
    ]
    assert [row[2] is None for row in rows] == [True, True, False, False]
