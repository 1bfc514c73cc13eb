"""What docs/generate.py writes is committed as it stands."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_SPEC = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert _SPEC and _SPEC.loader
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)
PAGES: dict[str, str] = generate.pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name], "renew it: make reference"


def test_nothing_lies_there_that_is_not_made() -> None:
    assert {path.name for path in (DOCS / "reference").iterdir()} == {Path(name).name for name in PAGES if "/" in name}


def test_every_column_and_every_option_is_explained() -> None:
    for name in ("reference/views.md", "reference/commands.md", "reference/manifest.md"):
        rows = [line for line in PAGES[name].splitlines() if line.startswith("| `")]
        assert len(rows) > 40
        assert not [row for row in rows if row.endswith("|  |")], name
