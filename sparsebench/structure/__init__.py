"""The sparsity structure of a model: how much of its weights is zero, near zero or far from zero, and where."""

from __future__ import annotations

from sparsebench.structure.assess import GroupSummary, StructureResult, TensorStructure, assess, summary
from sparsebench.structure.numbers import EDGES

VERSION: int = 1

__all__ = ["EDGES", "VERSION", "GroupSummary", "StructureResult", "TensorStructure", "assess", "summary"]
