"""Every feature of the toolkits that users come from has a recipe that is valid, and a number that the published records have."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_SPEC = importlib.util.spec_from_file_location("systems", DOCS / "systems.py")
assert _SPEC and _SPEC.loader
systems = importlib.util.module_from_spec(_SPEC)
sys.modules["systems"] = systems  # its dataclass looks its module up
_SPEC.loader.exec_module(systems)
ROWS = [row for rows in systems.features().values() for row in rows]


def test_every_row_has_a_valid_recipe_or_a_reason() -> None:
    assert len(systems.features()) >= 5
    assert all(bool(row.here) != bool(row.absent) for row in ROWS)
    for row in ROWS:
        assert not row.here or row.words(row.here) != "dense"
        assert not row.beside or row.words(row.beside) != row.words(row.here)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ledger = Ledger(tmp_path_factory.mktemp("published") / "published.duckdb")
    bundles = {ROOT / "ledger" / "published" / f"{row.manifest}.jsonl.zst" for row in ROWS}
    wrong: list[Exception] = []
    ledger.rebuild(sorted(bundle for bundle in bundles if bundle.exists()), wrong.append)
    assert not wrong
    return ledger.path


def test_sixty_rows_have_a_number_and_a_query_that_gives_it(published: Path) -> None:
    scored = systems.scored(published)
    assert len(scored) >= 60
    with query.session(published) as ask:
        for row, (score, _) in scored.items():
            assert score["score"] in {result["score"] for result in ask(row.query).dicts()}, row.query


def test_the_page_is_what_the_records_give(published: Path) -> None:
    assert (DOCS / "systems.md").read_text(encoding="utf-8") == systems.page(published), "renew it: make report"
