"""Writes into the pages what they quote from the published records: ``python docs/quotes.py LEDGER`` (``make report``).

A quoted number has its key behind it, ``63%<!--=coder_int8_file-->``; ``quoted.sql`` gives what each key says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md")))
QUOTE = re.compile(r"(?:(?<!-)>)?[\d.,]+%?\??<!--=(\w+)-->")


def said(ledger: Path) -> dict[str, str]:
    """What each key says, by the ledger of the published records."""
    from sparsebench.ledger import query

    # In a session each view is calculated once.
    with query.session(ledger) as run:
        return dict(run((DOCS / "quoted.sql").read_text(encoding="utf-8")).rows)


def written(text: str, by_key: dict[str, str]) -> str:
    """The page with its quotes as ``by_key`` has them. Raises KeyError for a key that is not there."""
    return QUOTE.sub(lambda found: f"{by_key[found[1]]}<!--={found[1]}-->", text)


if __name__ == "__main__":
    known = said(Path(sys.argv[1]))
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8"), known), encoding="utf-8")
