"""A small experiment in a ledger, and reports on it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.report import build
from tests.ledger import samples
from tests.report import calibrated
from tests.report.experiment import SMALL
from tests.report.reading import whole


@pytest.fixture(scope="session")
def records() -> list[dict[str, Any]]:
    """Two models, two methods, every stage."""
    return samples.sample()


@pytest.fixture(scope="session")
def ledger(records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger of ``records``."""
    path = tmp_path_factory.mktemp("ledger") / "sample.duckdb"
    Ledger(path).ingest(records)
    return path


@pytest.fixture(scope="session")
def report(ledger: Path) -> str:
    """The report on ``ledger``, without pictures."""
    return whole(build(ledger, ledger.parent / "report.md", ledger.parent / "figures"))


@pytest.fixture(scope="module")
def ask(ledger: Path) -> Iterator[Callable[[str], query.Table]]:
    """Asks the ledger in one session: each view is a table then, and its rows may lie otherwise."""
    with query.session(ledger) as ask:
        yield ask


@pytest.fixture(scope="session")
def calibrated_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with calibrated methods and perplexity."""
    path = tmp_path_factory.mktemp("calibrated") / "calibrated.duckdb"
    Ledger(path).ingest(calibrated.sample())
    return path


@pytest.fixture(scope="session")
def calibrated_report(calibrated_ledger: Path) -> str:
    """The report on ``calibrated_ledger``, without pictures."""
    folder = calibrated_ledger.parent
    return whole(build(calibrated_ledger, folder / "report.md", folder / "figures"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write the report on a small experiment: ``keep`` chooses its records, ``changes`` are the manifest's."""

    def written(keep: Callable[[dict[str, Any]], bool] = lambda record: True, **changes: Any) -> str:
        records = samples.sample(samples.manifest(**(SMALL | changes)))
        ledger = tmp_path / "small.duckdb"
        Ledger(ledger).ingest([record for record in records if keep(record)])
        return whole(build(ledger, tmp_path / "report.md", tmp_path / "figures"))

    return written
