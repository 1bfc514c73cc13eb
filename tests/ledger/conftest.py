"""One small ledger for all tests that only read."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from tests.ledger import samples
from tests.ledger.made import Ask, Hold, Records, Scored, of


@pytest.fixture(scope="session")
def found() -> Records:
    """The plan's record and one record a cell."""
    return samples.sample(samples.small())


@pytest.fixture(scope="session")
def ledger(found: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of all of them. Not to be written to."""
    path = tmp_path_factory.mktemp("ledger") / "sample.duckdb"
    Ledger(path).ingest(found)
    return path


@pytest.fixture
def scored(found: Records) -> Scored:
    """Makes the dense model's and one variant's record of one task, with these results in place of the sample's."""

    def made(dense: dict[str, Any] | None = None, variant: dict[str, Any] | None = None) -> Records:
        records = [
            copy.deepcopy(of(found, stage="benchmarks", model="smol", method=method, sparsity=sparsity)[0])
            for method, sparsity in (("dense", 0.0), ("magnitude", 0.5))
        ]
        for record, result in zip(records, (dense, variant), strict=True):
            record["result"] = result or record["result"]
        return records

    return made


@pytest.fixture(scope="module")
def ask(ledger: Path) -> Iterator[Ask]:
    """Asks ``ledger`` on one connection, on which each view is made once."""
    with query.session(ledger) as asked:
        yield asked


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Each call makes a ledger of its own."""
    paths = (tmp_path / f"held-{number}.duckdb" for number in count())
    with ExitStack() as sessions:

        def held(records: Any) -> Ask:
            path = next(paths)
            Ledger(path).ingest(records)
            return sessions.enter_context(query.session(path))

        yield held
