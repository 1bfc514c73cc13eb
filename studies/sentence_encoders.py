"""A sentence encoder's scores here beside sentence-transformers' own vectors, scored by scipy and scikit-learn.

    python studies/sentence_encoders.py FOLDER [--stsb stsb-en-test.csv]

``--stsb`` is the test set of the STS benchmark as CSV: two sentences and a score, with or without a header. Needs
sentence-transformers, which the program itself does not.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench import benchmarks, sources
from sparsebench.benchmarks import ScoredModel, ScoreResult, TaskSpec, all_tasks
from sparsebench.benchmarks.encoder import documents
from sparsebench.errors import SparsebenchError


def ours(folder: Path, specs: list[TaskSpec]) -> list[ScoreResult]:
    """Our scores."""
    found: list[ScoreResult] = []

    def emit(_: TaskSpec, result: ScoreResult | SparsebenchError) -> None:
        if isinstance(result, SparsebenchError):
            raise result
        found.append(result)

    benchmarks.score(ScoredModel(folder, "encoder"), specs, sources.Cache(), emit)
    return found


def cosines(model: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    """Cosine similarities of sentence-transformers' own vectors."""
    first, second = (model.encode([str(row[name]) for row in rows]) for name in ("sentence1", "sentence2"))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / lengths


def sts(path: Path) -> list[dict[str, Any]]:
    """The pairs of the CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0] != "sentence1"]
    return [{"sentence1": one, "sentence2": other, "score": float(score)} for one, other, score in rows]


def main() -> None:
    """Print one line a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stsb", type=Path)
    options = parser.parse_args()

    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer
    from sklearn.metrics import average_precision_score

    model = SentenceTransformer(str(options.folder), device="cpu")
    pairs = documents(all_tasks()["mrpc_pair"], sources.Cache())
    specs, similar = [TaskSpec("mrpc_pair")], [cosines(model, pairs)]
    theirs = [average_precision_score([row["label"] for row in pairs], similar[0])]
    with tempfile.TemporaryDirectory() as folder:
        if options.stsb:
            rows, file = sts(options.stsb), Path(folder, "stsb.jsonl")
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            specs.append(TaskSpec("stsb_sts", data=f"path:{file}"))
            similar.append(cosines(model, rows))
            theirs.append(spearmanr(similar[1], [row["score"] for row in rows]).statistic)
        for result, other, cosine in zip(ours(options.folder, specs), theirs, similar, strict=True):
            furthest = np.abs(np.array([outcome.value for outcome in result.outcomes]) - cosine).max()
            print(
                f"{result.task}: {result.metric} {result.score:.6f} here, {other:.6f} there, n {result.n}; "
                f"cosines differ by at most {furthest:.1e}"
            )


if __name__ == "__main__":
    main()
