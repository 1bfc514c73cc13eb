"""A small manifest on a tiny model, and the parts needed to run it in-process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MANIFEST = """\
version: 1
ledger: {home}/ledger/test.duckdb
work_dir: {home}/work
models:
  - {{name: tiny, source: "path:{model}", family: decoder}}
variants:
  - {{prune: magnitude, sparsity: [0.5, 0.9]}}
"""


@pytest.fixture
def manifest(tiny_llama: Path, tmp_path: Path) -> Path:
    """Dense and two sparsities of a tiny model: structure and storage."""
    path = tmp_path / "tiny.yaml"
    path.write_text(MANIFEST.format(home=tmp_path, model=tiny_llama))
    return path


@pytest.fixture
def sparsebench() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the program as a person does."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sparsebench", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)

    return call
