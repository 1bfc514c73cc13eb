"""The ledger tests' samples, and the report tests' calibrated ones, drawn."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsebench.figures.draw import draw
from sparsebench.figures.spec import FigureSpec, parse
from sparsebench.ledger import query
from sparsebench.ledger.query import Table
from sparsebench.ledger.store import Ledger
from tests.figures.pictures import Drawn
from tests.ledger import samples
from tests.ledger.made import of
from tests.report import calibrated


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with everything that the shipped figures show."""
    path = tmp_path_factory.mktemp("figures") / "sample.duckdb"
    engines = samples.manifest(
        models=[{"name": "fast", "source": "path:fast", "family": "decoder", "dtype": "bfloat16"}],
        variants=[{"prune": "magnitude", "sparsity": [0.5, 0.9]}],
        runtime={"engines": ["hf", "sparse", "deepspeed"]},
    )
    failing = samples.sample(engines, "engines")
    for record in of(failing, stage="memory"):
        if record["settings"]["engine"] == "deepspeed" and record["variant"]["sparsity"]:
            status = "failed" if record["variant"]["sparsity"] == 0.9 else "unsupported"
            record |= {"status": status, "reason": f"{status}: its output is not its own any more", "result": None}
    Ledger(path).ingest([*samples.sample(samples.small()), *calibrated.sample(), *failing])
    return path


@pytest.fixture(scope="module")
def ask(ledger: Path) -> Iterator[Callable[[str], Table]]:
    """Asks ``ledger`` on one connection, on which each view is made once."""
    with query.session(ledger) as asked:
        yield asked


@pytest.fixture
def figure(tmp_path: Path) -> Callable[..., FigureSpec]:
    """Write a figure's file into ./figures of an empty folder and parse it."""

    def write(text: str, name: str = "mine") -> FigureSpec:
        path = tmp_path / "figures" / f"{name}.sql"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return parse(path)

    return write


@pytest.fixture
def drawn(figure: Callable[..., FigureSpec]) -> Drawn:
    """Draw rows of columns, x and y among them, by a figure of this kind with these other keys."""

    def draw_rows(kind: str, columns: str, rows: Iterable[tuple[Any, ...]], **keys: Any) -> Any:
        header = {"title": "T", "kind": kind, "x": "x", "y": "y", **keys}
        spec = figure("".join(f"-- {key}: {value}\n" for key, value in header.items()) + "SELECT 1")
        return draw(spec, Table(tuple(columns.split()), tuple(rows)), [])

    return draw_rows
