"""All cases, topic by topic."""

from __future__ import annotations

from benchmarks.hostile.cases import code, data, figures, ledgers, manifests, paths, records, weights, wheels
from benchmarks.hostile.registry import CASES

__all__ = ["CASES", "code", "data", "figures", "ledgers", "manifests", "paths", "records", "weights", "wheels"]
