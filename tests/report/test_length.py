"""The published report is as short as it has to be, and has its ten sections."""

import re
from dataclasses import dataclass
from pathlib import Path

REPORT = (Path(__file__).parents[2] / "report.md").read_text(encoding="utf-8")


def test_it_is_read_in_a_quarter_of_an_hour() -> None:
    length = measured(REPORT)
    assert length.prose <= 3200 and length.table_words <= 900
    assert (length.tables, length.pictures) == (8, 6)


def test_its_ten_sections_are_numbered() -> None:
    heads = re.findall(r"^## (\d+)\. .+$", REPORT, re.MULTILINE)
    assert heads == [str(number) for number in range(1, 11)]


@dataclass(frozen=True)
class Length:
    """What is counted of a report in Markdown."""

    prose: int
    table_words: int
    tables: int
    pictures: int


def measured(text: str) -> Length:
    """Count a report: formulas, captions, rules of tables and links to queries are no words, nor are addresses."""
    text = re.sub(r"\[Q\d+]\([^)]*\)", "", text)
    text = re.sub(r"]\([^)]*\)", "]", text)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    pictures = len(re.findall(r"^!\[", text, re.MULTILINE))
    text = re.sub(r"^!\[.*\n+(\*[^*\n].*\n)?", "", text, flags=re.MULTILINE)
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    rules = [row for row in rows if re.fullmatch(r"[|: -]+", row)]
    shown = " ".join(row for row in rows if row not in rules).replace("|", " ")
    prose = " ".join(line for line in lines if not line.startswith("|"))
    return Length(_words(prose), _words(shown), len(rules), pictures)


def _words(text: str) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in text.split())
