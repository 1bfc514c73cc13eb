"""How sure a score is, whether two variants differ on the same documents, and what so many documents could have shown.

0/1 outcomes: Wilson's interval for a score; for a difference the exact McNemar test and Newcombe's interval for paired
proportions; for retained the same interval solved for the ratio. All else (average precision, rank
correlation, perplexity, graded outcomes): a seeded bootstrap over documents (perplexity: windows of text), both sides resampled
together. Documents that share a context count as one cluster. docs/statistics.md has the formulas.
"""

from sparsebench.ledger.statistics.contract import (
    UNEXPLAINED,
    Comparison,
    Interval,
    Metric,
    Pairs,
    Standing,
    codes,
    none,
    unexplained,
)
from sparsebench.ledger.statistics.judge import compare, explains, interval, judged
from sparsebench.ledger.statistics.sensitivity import ASSUMED, detectable, needed, power

__all__ = [
    "ASSUMED", "UNEXPLAINED", "Comparison", "Interval", "Metric", "Pairs", "Standing", "codes", "compare", "detectable",
    "explains", "interval", "judged", "needed", "none", "power", "unexplained",
]  # fmt: skip
