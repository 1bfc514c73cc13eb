"""The table that begins a report, for a terminal: model by model what passes the quality gate, in plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsebench.escape import visible
from sparsebench.ledger import query
from sparsebench.report.answer import Answer
from sparsebench.report.lookup import query_named
from sparsebench.report.words import cell

COLUMNS: Mapping[str, str] = {
    "skill": "{retained:pct0}",
    "perplexity": "×{ratio:.3f}",
    "file": "{share:pct0}",
    "a token": "×{token:.2f}",
    "a request": "×{request:.2f}",
}
"""Each column's heading, with the pattern of its cells (see ``words.cell``)."""
NOTE = "Of dense: skill and perplexity kept, bytes of the packed file, speed. –: not measured, or no gain shown."


def answer_table(ledger: Path, manifests: Sequence[str] = (), models: Sequence[str] = ()) -> str:
    """Return the smallest file of each kind that passes the quality gate, model by model, as lines of text.

    It is empty where nothing passes. ``manifests`` and ``models`` limit it to these experiments and models (default:
    all). Raises LedgerError where there is no ledger.
    """
    rows = query.run(ledger, query_named("decision", manifests)).dicts()
    rows = [row for row in rows if (row["model"] in models if models else row["first"])]
    if not rows:
        return ""
    names = max(len(visible(row[name])) for row in rows for name in ("model", "recipe")) + 2
    lines = []
    for row, variants in Answer("decision", tuple(rows)).groups("model"):
        lines.append(visible(row["model"]).ljust(names) + "".join(f"  {head}" for head in COLUMNS))
        for variant in variants:
            cells = "".join(f"  {cell(pattern, variant):>{len(head)}}" for head, pattern in COLUMNS.items())
            lines.append(f"  {visible(variant['recipe'])}".ljust(names) + cells)
    return "\n".join([*lines, NOTE]) + "\n"
