"""What the tests of this room write up."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import duckdb
import pytest

from sparsebench.plan.cells import Cell
from tests.ledger import samples

Write = Callable[..., str]
SMALL: dict[str, Any] = {
    "models": [{"name": "smol", "source": "path:smol.gguf", "family": "decoder", "dtype": "bfloat16"}],
    "variants": [{"prune": "magnitude", "sparsity": [0.5, 0.9]}],
    "benchmarks": {"decoder": [{"task": "piqa", "limit": 60}]},
    "runtime": {"engines": ["deepspeed"], "ranks": [1, 2], "workloads": [{"prompt": 32, "generate": 8}]},
}
DREAM: dict[str, Any] = {
    "name": "dream",
    "source": "random",
    "architecture": {"model_type": "llama"},
    "family": "decoder",
}


def faster(monkeypatch: pytest.MonkeyPatch, how: Callable[[Cell, str], float]) -> None:
    """Each phase of a variant takes ``how`` times less."""
    timed = samples.timed

    def sped(cell: Cell) -> Any:
        found = timed(cell)
        by = [how(cell, one.phase) for one in found.differences]
        pairs = zip(found.differences, by, strict=True)
        more = tuple(replace(d, ratio=d.ratio / b, low=d.low / b, high=d.high / b) for d, b in pairs)
        return replace(found, differences=more)

    monkeypatch.setattr(samples, "timed", sped)


def fill(connection: duckdb.DuckDBPyConnection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Put rows of values into a table."""
    for row in rows:
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
