"""Pages that are made from code, queries and records are what these give; quotes.py's numbers are compared in test_shipped."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.manifest.published import SCHEMA_FILE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def loaded(name: str) -> Any:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


generate, quotes, systems = map(loaded, ("generate", "quotes", "systems"))
ROWS = [row for rows in systems.features().values() for row in rows]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    made: dict[str, str] = generate.pages()
    return made


def test_every_page_is_up_to_date_and_no_other_lies_there(pages: dict[str, str]) -> None:
    there = {*(f"reference/{path.name}" for path in (DOCS / "reference").iterdir()), SCHEMA_FILE}
    assert there == set(pages)
    old = [name for name, text in pages.items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert not old, "renew them: make reference"


def test_every_column_and_every_option_is_explained(pages: dict[str, str]) -> None:
    for name in ("reference/views.md", "reference/commands.md", "reference/manifest.md"):
        rows = [line for line in pages[name].splitlines() if line.startswith("| `")]
        assert len(rows) > 40 and not [row for row in rows if row.endswith("|  |")], name


def test_pages_and_query_have_the_same_keys() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in quotes.PAGES)
    quoted, marked = set(quotes.QUOTE.findall(text)), set(re.findall(r"<!--=(\w*)", text))
    # A key is selected by itself, or opens a row of the table of quoted scores.
    given = set(re.findall(r"(?:SELECT |^    \()'(\w+)'", (DOCS / "quoted.sql").read_text(encoding="utf-8"), re.M))
    assert quoted == marked == given


def test_a_number_is_replaced_with_its_unit_and_nothing_else() -> None:
    text = "It is 1.5<!--=speed--> times, 81%<!--=share-->, and 3 more."
    assert quotes.written(text, {"speed": "1.7", "share": "80%"}) == text.replace("1.5", "1.7").replace("81%", "80%")


def test_every_feature_of_another_toolkit_has_a_valid_recipe_or_a_reason() -> None:
    assert len(systems.features()) >= 5
    assert all(bool(row.here) != bool(row.absent) for row in ROWS)
    for row in ROWS:
        assert not row.here or row.words(row.here) != "dense"
        assert not row.beside or row.words(row.beside) != row.words(row.here)


@pytest.mark.long
def test_sixty_features_have_a_number_and_a_query_that_gives_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "published.duckdb")
    bundles = {ROOT / "ledger" / "published" / f"{row.manifest}.jsonl.zst" for row in ROWS}
    ledger.rebuild(sorted(bundle for bundle in bundles if bundle.exists()), pytest.fail)
    scored = systems.scored(ledger.path)
    assert len(scored) >= 60
    with query.session(ledger.path) as ask:
        for row, (score, _) in scored.items():
            assert score["score"] in {result["score"] for result in ask(row.query).dicts()}, row.query
    assert (DOCS / "systems.md").read_text(encoding="utf-8") == systems.page(ledger.path), "renew it: make report"
