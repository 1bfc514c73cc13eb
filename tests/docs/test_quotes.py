"""Every number that a page quotes has a key, and a query that gives it; what it gives is compared in tests/test_shipped.py."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_SPEC = importlib.util.spec_from_file_location("quotes", DOCS / "quotes.py")
assert _SPEC and _SPEC.loader
quotes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(quotes)


def test_pages_and_query_have_the_same_keys() -> None:
    quoted = {key for page in quotes.PAGES for key in quotes.QUOTE.findall(page.read_text(encoding="utf-8"))}
    marked = {key for page in quotes.PAGES for key in re.findall(r"<!--=(\w*)", page.read_text(encoding="utf-8"))}
    # A key is selected by itself, or opens a row of the table of quoted scores.
    given = set(re.findall(r"(?:SELECT |^    \()'(\w+)'", (DOCS / "quoted.sql").read_text(encoding="utf-8"), re.M))
    assert quoted == marked == given


def test_a_number_is_replaced_with_its_unit_and_nothing_else() -> None:
    text = "It is 1.5<!--=speed--> times, 81%<!--=share-->, and 3 more."
    assert quotes.written(text, {"speed": "1.7", "share": "80%"}) == text.replace("1.5", "1.7").replace("81%", "80%")
