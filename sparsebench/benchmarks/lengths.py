"""A model for lm-eval that answers by length alone. Imported only to score: lm-eval is heavy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sparsebench.benchmarks.harness import Harness
from sparsebench.benchmarks.masked import AnswerScorer


class _ByLength(AnswerScorer):
    """A model for which longer answers are likelier, or shorter ones with ``sign`` -1."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign
        self.notes = {"heuristic": "the longest answer" if sign > 0 else "the shortest answer"}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return ``sign`` times the squared length: its order survives lm-eval's division by the length (acc_norm)."""
        self.sharing = "off: no model"
        return [(self.sign * float(len(request.args[1])) ** 2, False) for request in requests]


class Lengths(Harness):
    """lm-eval's tasks with choices, answered by length."""

    def __init__(self, sign: int) -> None:
        """``sign`` is 1 for the longest answer, -1 for the shortest."""
        self.batch_size, self.exact = 1, False
        self.model: Any = SimpleNamespace(dtype="none")
        self.lm: Any = _ByLength(sign)
