"""Files of one's own, and the score of a model on one."""

import json
import random
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.benchmarks import OwnData, ScoreResult, kind_of
from sparsebench.benchmarks.own import content
from tests.benchmarks.conftest import run
from tests.benchmarks.test_generation import speller  # noqa: F401

DRAW = random.Random(9)


def written(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def own(task: str, path: Path, **asked: Any) -> OwnData:
    source = sources.parse(f"path:{path}")
    return OwnData(kind_of(task), content(source, sources.Cache()), source=source.text, **asked)


def scored(folder: Path, family: Any, task: str, path: Path, limit: int | None = None, **asked: Any) -> ScoreResult:
    return run(folder, family, task, limit=limit, own=own(task, path, **asked))
