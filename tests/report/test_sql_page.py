"""docs/sql.md: every query on the page runs on a ledger, gives rows, and uses public views only."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebench.ledger import query, sqlfiles

PAGE = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^## \d+\. (.+?)\n.*?```sql\n(.+?)\n```", PAGE, re.MULTILINE | re.DOTALL)


def test_there_are_ten() -> None:
    assert len(QUESTIONS) == PAGE.count("```sql") == 10


@pytest.mark.parametrize("sql", [sql for _, sql in QUESTIONS], ids=[title for title, _ in QUESTIONS])
def test_a_query_gives_rows_in_an_order_of_its_own(ask: Callable[[str], query.Table], ledger: Path, sql: str) -> None:
    found = query.run(ledger, sql)
    assert found.rows
    assert ask(sql) == found
    assert "ORDER BY" in sql
    assert not re.search(r"\bbase\.|\b_[a-z]+\b", sql)


def test_the_last_line_holds(ask: Callable[[str], query.Table]) -> None:
    for sql in re.findall(r"`(SELECT \* FROM .+?)`", PAGE):
        assert ask(sql).columns


def test_what_the_page_says_of_columns_is_there(ledger: Path) -> None:
    known = {(row["view"], row["column"]) for row in query.run(ledger, sqlfiles.read("describe")).dicts()}
    assert {("pareto", "cost"), ("vs_dense", "gained"), ("vs_dense", "lost"), ("structure", "scale")} <= known
    costs = {row[0] for row in query.run(ledger, "SELECT DISTINCT cost FROM pareto").rows}
    assert costs == {"bytes", "prefill_ms", "decode_ms", "peak_bytes"}
