"""What surrounds the code: one version everywhere, a lean installation, and forms and studies that name what is there."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from sparsebench import __version__
from sparsebench.cli.app import app

ROOT = Path(__file__).parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_version_is_written_once_and_repeated_only_where_it_must_be() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sparsebench.__version__"}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (__version__, project["project"]["license"])
    released = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[:1] in ([], [__version__])


def test_records_are_queried_drawn_and_reported_without_what_measuring_needs(tmp_path: Path) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lean = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(lean) < set(lines), "what queries and reports need is a part of the one list"
    names = {re.split("[>=<]", line)[0] for line in lines if line and line not in lean and not line.startswith("#")}
    modules = sorted({name.replace("-", "_") for name in names} | {"sklearn", "pandas"})
    commands = [
        ["ingest", str(ROOT / "ledger/published/calibration.jsonl.zst"), "--ledger", "l.duckdb"],
        ["sql", "--ledger", "l.duckdb", "select count(*) from results"],
        ["figures", "calibration", "--ledger", "l.duckdb", "--out", "figures"],
        ["report", "--ledger", "l.duckdb", "--out", "report.md", "--figures", "figures"],
    ]
    program = f"""
import sys
class Absent:
    def find_spec(name, *_):
        if name in {modules!r}:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Absent)
from sparsebench.cli.app import main
for sys.argv in {[["sparsebench", *words] for words in commands]!r}:
    try:
        main()
    except SystemExit as end:
        assert not end.code, sys.argv
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert (tmp_path / "report.md").stat().st_size > 10_000


def test_issue_forms_name_real_commands() -> None:
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    named = re.findall(r"`sparsebench (\w+)", "".join(path.read_text() for path in FORMS))
    assert len(named) >= 3 and set(named) <= verbs


@pytest.mark.parametrize("path", sorted((ROOT / "studies").rglob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_take_from_the_program_what_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "sparsebench":
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
