"""Questions on passages of SQuAD 1.1 (Rajpurkar et al. 2016), each behind five that are answered, and its measures of an answer.

An answer is compared in lower case, without punctuation and articles: by being the same, and by F1 over its words, the better of
the accepted answers.
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
    """Prompt, accepted answers and passage of every question, as the requests of the data's package have them."""
    for record in read_records(path):
        assert not isinstance(record, str)
        yield record["request"]["context"], tuple(record["label"]), record["doc"]["query"].rpartition("\nQuestion:")[0]


def words(answer: str) -> tuple[str, ...]:
    """What is compared of an answer."""
    return tuple(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def f1(written: Sequence[str], answer: Sequence[str]) -> float:
    """Twice the words in common over the words of both; 1 where both have none."""
    common = sum((Counter(written) & Counter(answer)).values())
    return 2 * common / (len(written) + len(answer)) if written or answer else 1.0
