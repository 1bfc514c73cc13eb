"""The table of methods: every row loads, nothing heavy is imported to read it."""

import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from sparsebench.errors import UserError
from sparsebench.steps.prune import registry
from sparsebench.steps.prune.registry import BUILT_IN, Method


@pytest.mark.parametrize("method", BUILT_IN, ids=lambda method: method.name)
def test_every_row_loads(method: Method) -> None:
    assert callable(resolve_name(method.score or method.solve or method.run))
    assert method.summary
    assert method.consumes <= bool(method.solve)


def test_defaults_are_as_published() -> None:
    assert {method.name: (method.granularities[0], method.needs) for method in BUILT_IN if method.granularities} == {
        "random": ("layer", ""),
        "magnitude": ("layer", ""),
        "wanda": ("row", "squares"),
        "ria": ("layer", "squares"),
        "sparsegpt": ("layer", "gram"),
        "alps": ("layer", "gram"),
    }


def test_every_file_of_a_method_has_its_row() -> None:
    folder = Path(registry.__file__).parent / "methods"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files == {
        (method.score or method.solve or method.run).partition(":")[0].rpartition(".")[2] for method in BUILT_IN
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"score": "a:b", "solve": "a:b"},
        {"score": "a:b", "needs": "everything"},
        {"score": "a:b", "granularities": ()},
        {"score": "a:b", "granularities": ("column",)},
    ],
)
def test_a_row_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="method mine"):
        Method("mine", summary="", **wrong)


def test_reading_the_table_imports_no_torch() -> None:
    code = (
        "import sys, sparsebench.steps.prune.registry as r; r.methods();"
        "sys.exit(sorted({'torch', 'numpy', 'scipy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
