"""The ledger tests' samples, and the report tests' calibrated ones, drawn."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with everything that the shipped figures show."""
    from sparsebench.ledger.store import Ledger
    from tests.ledger import samples
    from tests.report import calibrated

    path = tmp_path_factory.mktemp("figures") / "sample.duckdb"
    engines = samples.manifest(
        models=[{"name": "fast", "source": "path:fast", "family": "decoder", "dtype": "bfloat16"}],
        variants=[{"prune": "magnitude", "sparsity": [0.5, 0.9]}],
        runtime={"engines": ["hf", "sparse", "deepspeed"]},
    )
    failing = samples.sample(engines, "engines")
    for record in failing:
        if (
            record.get("stage") == "memory"
            and record["settings"]["engine"] == "deepspeed"
            and record["variant"]["sparsity"]
        ):
            status = "failed" if record["variant"]["sparsity"] == 0.9 else "unsupported"
            record |= {"status": status, "reason": f"{status}: its output is not its own any more", "result": None}
    records = [samples.sample(samples.small()), calibrated.sample(), failing]
    Ledger(path).ingest([record for part in records for record in part])
    return path


@pytest.fixture(scope="module")
def ask(ledger: Path) -> Iterator[Callable[[str], Any]]:
    """Asks ``ledger`` on one connection, on which each view is made once."""
    from sparsebench.ledger import query

    with query.session(ledger) as asked:
        yield asked


@pytest.fixture
def figure(tmp_path: Path) -> Callable[[str], Any]:
    """Write a figure's file into ./figures of an empty folder and parse it."""
    from sparsebench.figures.spec import parse

    def write(text: str, name: str = "mine") -> Any:
        path = tmp_path / "figures" / f"{name}.sql"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return parse(path)

    return write
