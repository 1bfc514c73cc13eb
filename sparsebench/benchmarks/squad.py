"""SQuAD 1.1 (Rajpurkar et al. 2016): questions about passages, each after five answered ones, and its two metrics.

Answers are compared in lower case, without punctuation and articles, by exact match and by F1 over words. The best of
the accepted answers counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparsebench.sources.text import read_records

_ARTICLES, _PUNCTUATION = re.compile(r"\b(a|an|the)\b"), str.maketrans("", "", string.punctuation)


def read(path: Path) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield prompt, accepted answers and passage of every question, from the request file of the data's package."""
    for record in read_records(path):
        assert not isinstance(record, str)
        yield record["request"]["context"], tuple(record["label"]), record["doc"]["query"].rpartition("\nQuestion:")[0]


def words(answer: str) -> tuple[str, ...]:
    """Return the words of an answer that are compared: in lower case, without punctuation and articles."""
    return tuple(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def f1(output: Sequence[str], answer: Sequence[str]) -> float:
    """Return twice the number of common words over the number of both's words; 1 if neither has any."""
    common = sum((Counter(output) & Counter(answer)).values())
    return 2 * common / (len(output) + len(answer)) if output or answer else 1.0
