"""docs/howto/notebook.md: its Python, as it stands, on a model that is small enough for a test."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import sparsebench
from sparsebench import notebook
from sparsebench.ledger import connect, schema
from sparsebench.plan.single import SingleModel

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "notebook.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
HALF = {"prune": "magnitude", "sparsity": 0.5}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_as_it_stands(home: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its models are made and described; scoring and timing, which take minutes, are asked for with the page's arguments."""
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for name in ("score", "measure"):
        monkeypatch.setattr(notebook, name, lambda *words, _name=name, **named: asked.append((_name, words, named)))
    first, second, _ = BLOCKS
    space: dict[str, Any] = {}
    exec(first.replace('"smollm2-135m"', repr(str(tiny_llama))), space)
    shares = eval(second.splitlines()[0], space).set_index("scope")["zeros"]
    assert shares["prunable"] == pytest.approx(0.5, abs=1e-3)
    found = eval(second.splitlines()[1], space)
    assert list(found["format"]) == ["packed", "archive"] and (found["bytes"] > 0).all()
    sparse, dense = space["sparse"], space["dense"]
    assert asked == [
        ("score", (sparse, "perplexity"), {"against": dense, "limit": 8}),
        ("measure", (sparse,), {"against": dense, "engine": "sparse"}),
    ]


def test_sql_gives_frames_and_arrow(home: Path) -> None:
    path = home / "ledger" / "sparsebench.duckdb"
    with connect.writer(path, 1.0) as connection:
        schema.upgrade(connection, path)
    space: dict[str, Any] = {}
    (page,) = [block for block in BLOCKS if "import sql" in block]
    exec(page, space)
    views = space["sql"]()
    assert {"results", "scores", "latency"} <= set(views["view"])
    assert list(space["sql"]("SELECT 0.5 AS share")["share"]) == [0.5]
    assert isinstance(space["sql"]("SELECT * FROM scores", arrow=True), pa.Table)


def test_a_chain_is_made_and_nothing_else_is_left(home: Path, tiny_llama: Path) -> None:
    dense = sparsebench.load(str(tiny_llama))
    chain = sparsebench.apply(dense, [HALF, {"quantize": "int8"}], home / "made" / "both")
    assert isinstance(chain, SingleModel) and [path.name for path in (home / "made").iterdir()] == ["both"]
    assert sparsebench.inspect(chain).set_index("scope")["zeros"]["prunable"] >= 0.5 - 1e-3


@pytest.mark.long
def test_scores_and_times_are_tables(home: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = sparsebench.load(str(tiny_llama))
    sparse = sparsebench.apply(dense, HALF, home / "half")
    timed = sparsebench.measure(sparse, dense, prompt=8, generate=2, samples=4, processes=1, device="cpu")
    assert {"prefill", "decode"} <= set(timed["phase"]) and (timed["peak_bytes"] > 0).all()
    assert np.isfinite(timed.set_index("phase")["speedup"][["prefill", "decode"]]).all()


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = "import sys, sparsebench; print([name for name in sys.modules if name.startswith('sparsebench.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(notebook.__all__) | {"__version__"} == set(sparsebench.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = sparsebench.nothing
