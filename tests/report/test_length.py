"""The published report is as short as it has to be, and has its ten sections."""

import re
from collections.abc import Iterable
from pathlib import Path

REPORT = (Path(__file__).parents[2] / "report.md").read_text(encoding="utf-8")


def test_it_is_read_in_a_quarter_of_an_hour() -> None:
    """Formulas, captions, rules of tables and links to queries are no words, nor are addresses."""
    text = re.sub(r"\[Q\d+]\([^)]*\)", "", REPORT)
    text = re.sub(r"]\([^)]*\)", "]", text)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    text, pictures = re.subn(r"^!\[.*\n+(\*[^*\n].*\n)?", "", text, flags=re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    rules = [row for row in rows if re.fullmatch(r"[|: -]+", row)]
    assert (len(rules), pictures) == (8, 6)
    assert words(line for line in text.splitlines() if not line.startswith("|")) <= 3200
    assert words(row.replace("|", " ") for row in rows if row not in rules) <= 900


def test_its_ten_sections_are_numbered() -> None:
    heads = re.findall(r"^## (\d+)\. .+$", REPORT, re.MULTILINE)
    assert heads == [str(number) for number in range(1, 11)]


def test_page_one_speaks_of_every_format_of_its_table() -> None:
    """One more format of a small encoder must not push the smallest of the large decoders out of the text."""
    (answer,) = re.findall(r"^- \*\*Fewer bits first.*$", REPORT, re.MULTILINE)
    table = REPORT[REPORT.index("| model | variant | it loses |") :].split("\n\n")[0]
    formats = set(re.findall(r"^\| \S+ \| (int\d|Q\d\w+)", table, re.MULTILINE))
    assert formats >= {"int4", "int8"}
    assert not {name for name in formats if f"{name} passes" not in answer}


def words(lines: Iterable[str]) -> int:
    return sum(any(letter.isalnum() for letter in word) for line in lines for word in line.split())
