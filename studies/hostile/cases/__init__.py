"""All cases, topic by topic."""

from __future__ import annotations

from studies.hostile.cases import code, data, figures, ledgers, manifests, paths, records, weights, wheels
from studies.hostile.registry import CASES

__all__ = ["CASES", "code", "data", "figures", "ledgers", "manifests", "paths", "records", "weights", "wheels"]
