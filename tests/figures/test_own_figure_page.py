"""docs/howto/own-figure.md: the figure on the page is drawn as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsebench.figures.draw import render

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "own-figure.md").read_text(encoding="utf-8")


def test_the_figure_on_the_page_is_drawn(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = re.findall(r"`figures/(\w+)\.sql`:", PAGE)
    (sql,) = re.findall(r"```sql\n(.+?)```", PAGE, re.DOTALL)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / f"{name}.sql").write_text(sql)
    monkeypatch.chdir(tmp_path)
    (made,) = render(ledger, [name], tmp_path / "paper", ("pdf",))
    assert made.paths == (tmp_path / "paper" / f"{name}.pdf",)
    assert made.paths[0].stat().st_size > 5000
    assert "retained" in PAGE and "low" in PAGE
