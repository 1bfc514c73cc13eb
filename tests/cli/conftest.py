"""A command in this process, and a small ledger."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsebench.ledger.store import Ledger
from tests.adversarial import benign
from tests.command import call

HALF = "prune: magnitude, sparsity: 0.5"
ROOT = Path(__file__).resolve().parents[2]
MANIFEST = """version: 1
models: [{name: tiny, source: path:model, family: decoder}]
variants: [{prune: magnitude, sparsity: 0.5}]
storage: {formats: [dense]}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some records, and the ledger of them."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "records").mkdir()
    for number, record in enumerate(benign.records(ROOT)):
        if record.get("stage", "plan") in ("plan", "structure", "storage"):  # of which there are figures
            (folder / "records" / f"{number}.json").write_text(json.dumps(record))
    Ledger(folder / "ledger.duckdb").rebuild([folder / "records"])
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command in this very process, in a folder of its own; its exit code and what it said to stderr."""
    monkeypatch.chdir(tmp_path)

    def called(*words: object) -> tuple[int, str]:
        done = call(*words)
        return done.returncode, done.stderr

    return called
