"""A small plan for tests of what becomes of one."""

from pathlib import Path
from typing import Any

import pytest

from sparsebench.manifest.problems import ManifestError
from sparsebench.manifest.schema import Manifest
from sparsebench.plan.cells import Cell
from sparsebench.plan.expand import Plan, expand
from sparsebench.plan.preflight import PlanRequest, Prepared, prepare

RANDOM = """\
version: 1
models:
  - {name: m, source: random, family: decoder,
     architecture: {model_type: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 64}}
"""
"""The first four lines of a manifest, of a model that needs no folder."""


def planned(revision: str = "r1", **changes: object) -> Plan:
    content: dict[str, object] = {
        "version": 1,
        "models": [{"name": "m", "source": "path:m", "family": "decoder"}],
        "variants": [
            {"prune": "magnitude", "granularity": ["layer", "row"], "sparsity": [0.5, 0.9]},
            {"prune": "magnitude", "pattern": ["2:4"]},
        ],
        "benchmarks": {"decoder": [{"task": "piqa"}, {"task": "arc_easy", "limit": 10}]},
        "runtime": {"ranks": [1, 2], "select": {"sparsity": [0.9]}},
    }
    return expand(Manifest.model_validate(content | changes), "test", {"m": revision, "other": revision})


def bare(**changes: object) -> Plan:
    """A plan of one model in bfloat16, with what is asked for and no more."""
    content = {"version": 1, "models": [{"name": "m", "source": "path:m", "family": "decoder", "dtype": "bfloat16"}]}
    return expand(Manifest.model_validate(content | changes), "test", {"m": "r"})


def written(folder: Path, text: str, name: str = "mine.yaml", **request: Any) -> Prepared:
    """What the preflight makes of a manifest with this text; ``request`` is what else is asked for."""
    (folder / name).write_text(text)
    return prepare(PlanRequest(folder / name, ledger=folder / "l.duckdb", **request))


def refusal(folder: Path, text: str, **request: Any) -> str:
    """What is wrong with a manifest of this text, as it is shown."""
    with pytest.raises(ManifestError) as caught:
        written(folder, text, **request)
    return str(caught.value)


def ids(plan: Plan, stage: str = "") -> set[str]:
    return {cell.id for cell in plan.cells if stage in ("", cell.stage)}


def stages(cells: tuple[Cell, ...]) -> set[str]:
    return {cell.stage for cell in cells}


CALIBRATED = [
    {"prune": "magnitude", "sparsity": 0.5},
    {"prune": "wanda", "sparsity": [0.5, 0.9], "propagate": "dense"},
    {"prune": "sparsegpt", "sparsity": [0.5, 0.9], "propagate": "dense"},
    {"prune": "wanda", "sparsity": [0.5, 0.9], "allocation": ["uniform", "owl"]},
    {"prune": "magnitude", "sparsity": 0.5, "allocation": "owl"},
]
