"""The command `report`: what it writes, prints and refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsebench.errors import LedgerError, UserError
from sparsebench.report import answer_table, build
from tests.report.reading import whole
from tests.report.test_report import tables


def test_without_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger"):
        build(tmp_path / "none.duckdb", tmp_path / "report.md", tmp_path)


def test_the_verb(ledger: Path, report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer
    from typer.testing import CliRunner

    from sparsebench.cli import report as verbs

    app = typer.Typer()
    app.command()(verbs.report)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["--ledger", str(ledger), "--out", "out/page.md"])
    assert (done.exit_code, done.stdout) == (0, "out/page.md\nout/page-results.md\nout/page.html\n")
    made = whole([tmp_path / "out" / name for name in ("page.md", "page-results.md")])
    assert made.replace("page-results.md", "report-results.md") == report


def test_a_brief_report_is_the_first_page_alone(ledger: Path, report: str, tmp_path: Path) -> None:
    (path,) = build(ledger, tmp_path / "brief.md", tmp_path / "figures", brief=True)
    text = path.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["1. The answer"]
    first = [line for line in report.split("## 2.")[0].splitlines() if line.startswith(("| ", "- **"))]
    assert first and [line for line in text.splitlines() if line.startswith(("| ", "- **"))] == first
    assert not re.search(r"\[Q\d+]|#q\d", text)
    with pytest.raises(UserError, match="Markdown"):
        build(ledger, tmp_path / "brief.html", tmp_path / "figures", formats=("html",), brief=True)


def test_the_answer_is_printed_too(ledger: Path, report: str, tmp_path: Path) -> None:
    text = answer_table(ledger)
    rows = tables(report.split("## 2.")[0])[0][2:]
    assert {row[0] for row in rows} == {line.split()[0] for line in text.splitlines() if line.endswith("a request")}
    assert all(f"  {row[1]} " in text for row in rows)
    assert max(map(len, text.splitlines())) <= 110 and "**" not in text
    assert answer_table(ledger, ["sample"]) == text
    with pytest.raises(LedgerError):
        answer_table(tmp_path / "none.duckdb")


@pytest.mark.parametrize(("out", "results"), [("r.html", None), ("r.md", "../x/r.md"), ("r.md", "r.html")])
def test_two_documents_of_one_name_are_refused(ledger: Path, tmp_path: Path, out: str, results: str | None) -> None:
    beside = tmp_path / "x" / results if results else None
    with pytest.raises(UserError, match=r"r\.(html|md): two documents"):
        build(ledger, tmp_path / "x" / out, tmp_path, formats=("md", "html"), results=beside)
    assert not list(tmp_path.rglob("r.*"))
