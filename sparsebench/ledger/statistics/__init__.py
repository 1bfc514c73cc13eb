"""How certain a score is, whether two variants differ on the same documents, and what their number could have shown.

0/1 outcomes: Wilson's interval for a score; for a difference the exact McNemar test and Newcombe's interval for paired
proportions; for the share retained the same interval solved for the ratio. Perplexity per token: Student's t of the
log-losses of windows of text. All else (average precision, rank correlation, graded outcomes): a seeded bootstrap over
documents, both sides resampled together, but a jackknife for the interval of an average precision. Documents that share
a context count as one cluster. docs/statistics.md has the formulas.
"""

from sparsebench.ledger.statistics.contract import (
    UNEXPLAINED,
    Comparison,
    Interval,
    Metric,
    Pairs,
    VerdictOverrides,
    encode_clusters,
    not_compared,
)
from sparsebench.ledger.statistics.judge import (
    at_chance,
    compare,
    holm_verdicts,
    interval,
    not_reproducible,
    reproduces_score,
)
from sparsebench.ledger.statistics.sensitivity import ASSUMED, detectable, documents_needed, power

__all__ = [
    "ASSUMED", "UNEXPLAINED", "Comparison", "Interval", "Metric", "Pairs", "VerdictOverrides", "at_chance", "compare",
    "detectable", "documents_needed", "encode_clusters", "holm_verdicts", "interval", "not_compared",
    "not_reproducible", "power", "reproduces_score",
]  # fmt: skip
