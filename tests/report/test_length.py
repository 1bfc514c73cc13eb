"""The published report is as short as it has to be, and has its ten sections."""

from __future__ import annotations

import re
from pathlib import Path

from tests.report.counting import measured

REPORT = (Path(__file__).parents[2] / "report.md").read_text(encoding="utf-8")


def test_it_is_read_in_a_quarter_of_an_hour() -> None:
    length = measured(REPORT)
    assert length.prose <= 3200 and length.table_words <= 900
    assert (length.tables, length.pictures) == (8, 6)


def test_its_ten_sections_are_numbered() -> None:
    heads = re.findall(r"^## (\d+)\. .+$", REPORT, re.MULTILINE)
    assert heads == [str(number) for number in range(1, 11)]


def test_what_is_counted() -> None:
    text = "# A head\n\nTwo $x + y$ [words](there) [Q1](r.md#q1)\n\n![a](b.png)\n\n*a caption*\n\n"
    text += "| a | b |\n| - | - |\n| c d | × |\n"
    length = measured(text)
    assert (length.prose, length.table_words, length.tables, length.pictures) == (4, 4, 1, 1)
