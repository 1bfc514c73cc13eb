"""Whether the text that a model was fitted to holds a task's documents word for word, by hashes of runs of words.

A document is copied when one of its texts is: at least SHARE of the text's runs of RUN words stand in the fitted text.
Names of data sets say the same sooner (``overlap``), but not of a file of one's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import sources
from sparsebench.benchmarks.catalog import TASKS, definition, located
from sparsebench.sources.text import read_records

if TYPE_CHECKING:
    import numpy as np

    from sparsebench.benchmarks.contract import TaskSpec

RUN = 13
"""Words in a run, as in Brown et al. 2020, appendix C; shorter texts are never counted: questions are alike by chance."""
SHARE = 0.7
"""Of a text's runs, as in Chowdhery et al. 2022, section 8. One run alone may be a quotation."""
_BASE = 0x9E3779B97F4A7C15
"""Odd, so that no word of a run loses bits modulo 2⁶⁴."""


class Fitted:
    """The runs of words of the texts that a model was fitted to, as sorted 64-bit hashes; ``allowed``: also a task's own."""

    def __init__(self, texts: Iterable[str], allowed: bool = False) -> None:
        import numpy as np

        self.allowed = allowed
        found = [_runs(text) for text in texts]
        self.runs: np.ndarray[Any, Any] = np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)

    def holds(self, text: str) -> bool:
        """Whether the text, case and punctuation aside, is one of them or part of one."""
        import numpy as np

        runs = _runs(text)
        if not len(runs) or not len(self.runs):
            return False
        nearest = np.minimum(np.searchsorted(self.runs, runs), len(self.runs) - 1)
        return float((self.runs[nearest] == runs).mean()) >= SHARE


def copied(fitted: Fitted, spec: TaskSpec, cache: sources.Cache) -> list[str] | None:
    """Those of the task's texts that ``fitted`` holds, one a document; None where its data are not local files.

    All documents count, also beyond a ``limit``, but not those of a training split.
    """
    files = _files(spec, cache)
    if files is None:
        return None
    held = (next(filter(fitted.holds, _texts(record)), None) for file in files for record in read_records(file))
    return [text for text in held if text is not None]


def _files(spec: TaskSpec, cache: sources.Cache) -> list[Path] | None:
    task = TASKS.get(spec.task)
    if task is None or task.adapter == "generation":  # whose file is that of the training words as well
        return None
    if task.adapter != "harness":
        texts = (spec.data,) if spec.data else task.data
        return [sources.fetch(sources.parse(text), cache) for text in texts] if texts else None
    found: list[Path] = []
    for split, text in definition(spec.task)["dataset_kwargs"]["data_files"].items():
        source, inner = located(text)
        path = sources.fetch(sources.parse(source), cache)
        if split != "train":
            found += sorted(path.glob(inner.format(dataset_name="*"))) if inner else [path]
    return found


def _texts(value: Any) -> Iterator[str]:
    """Every text in a record, whatever its name."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _runs(text: str) -> np.ndarray[Any, Any]:
    """A hash of each run of words: a polynomial of the words' own, modulo 2⁶⁴."""
    import numpy as np

    words = np.array([_word(word) for word in re.findall(r"\w+", text.lower())], dtype=np.uint64)
    if len(words) < RUN:
        return np.empty(0, np.uint64)
    found = np.zeros(len(words) - RUN + 1, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(RUN):
            found = found * np.uint64(_BASE) + words[place : len(words) - RUN + 1 + place]
    return found


@lru_cache(maxsize=1 << 18)
def _word(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
