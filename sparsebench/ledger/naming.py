"""What a person calls a variant: ``model/dense``, ``model/wanda/0.5``, ``model/magnitude/row/50%``, ``model/sparsegpt/2:4``,
or the beginning of its id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

from sparsebench.errors import UserError
from sparsebench.ledger import query, sqlfiles

_ID = re.compile(r"[0-9a-f]{4,}")
_SHARE = re.compile(r"(\d*\.?\d+)(%?)")
SHOWN = 8
"""Names that an error lists."""


@dataclass(frozen=True)
class Named:
    """A variant that the ledger has measured, with what tells it apart. ``manifests`` are those that ask for it."""

    id: str
    model: str
    family: str
    weights: str
    dtype: str
    method: str
    granularity: str
    pattern: str
    sparsity: float | None
    seed: int
    propagate: str
    calibration: str
    manifests: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name in full, but for the seed, the precision and the calibration."""
        if self.method == "dense":
            return f"{self.model}/dense"
        amount = f"{self.sparsity or 0:g}" if self.pattern == "unstructured" else self.pattern
        return "/".join(word for word in (self.model, self.method, self.granularity, amount) if word)

    @property
    def details(self) -> str:
        """What else tells it apart from variants of the same name."""
        inputs = f"{self.propagate} inputs" if self.propagate else ""
        parts = (f"id {self.id[:10]}", self.dtype, f"seed {self.seed}", inputs, self.calibration.rsplit("/", 1)[-1])
        return ", ".join(part for part in parts if part)

    def answers_to(self, words: Sequence[str]) -> bool:
        """Whether each word is one of its own: method, granularity, pattern, sparsity, dtype, ``seed3``, ``pruned``, its id."""
        return all(self._has(word) for word in words)

    def _has(self, word: str) -> bool:
        own = {self.method, self.granularity, self.pattern, self.dtype, self.propagate, f"seed{self.seed}"}
        if word in own or (_ID.fullmatch(word) and self.id.startswith(word)):
            return True
        share = _SHARE.fullmatch(word)
        if share is None or self.pattern != "unstructured" or self.method == "dense":
            return False
        return abs(float(share[1]) / (100 if share[2] else 1) - (self.sparsity or 0)) < 1e-9


def known(ledger: Path) -> list[Named]:
    """The ledger's variants. Raises LedgerError when it cannot be opened."""
    rows = query.run(ledger, sqlfiles.read("side_by_side/variants")).dicts()
    return [Named(**{**row, "manifests": tuple(row["manifests"])}) for row in rows]


def resolve(text: str, variants: Sequence[Named]) -> Named:
    """The one variant that ``text`` names. Raises UserError when it is none, or several: these are listed."""
    if not variants:
        raise UserError("the ledger holds no finished cell", "make some: sparsebench run MANIFEST")
    model, *words = text.strip("/").split("/")
    found = [one for one in variants if one.model == model and one.answers_to(words)]
    if not words and not found and _ID.fullmatch(model):
        found = [one for one in variants if one.id.startswith(model)]
    if not found:
        raise _unknown(text, model, words, variants)
    # `model/dense` is the dense model, though `dense` is also what a method's inputs may be.
    exact = [one for one in found if one.name == text.strip("/")]
    if len(exact or found) > 1:
        raise _ambiguous(text, exact or found)
    return (exact or found)[0]


def _unknown(text: str, model: str, words: Sequence[str], variants: Sequence[Named]) -> UserError:
    """With the names that share most words with ``text``, and of these the ones that are spelt most like it."""
    models = list(dict.fromkeys(one.model for one in variants))
    meant = next(iter(get_close_matches(model, models, 1, 0.5)), None)
    what = f"no variant {text!r} in the ledger"
    if meant is None:
        return UserError(what, f"a name is MODEL/METHOD/SPARSITY; the models are {_list(models)}")
    ranked = sorted(
        (one for one in variants if one.model == meant),
        key=lambda one: (
            -sum(one.answers_to([word]) for word in words),
            -SequenceMatcher(None, text, one.name).ratio(),
        ),
    )
    near = list(dict.fromkeys(one.name for one in ranked))[:3]
    return UserError(what, f"did you mean {' or '.join(near)}?")


def _ambiguous(text: str, found: Sequence[Named]) -> UserError:
    names = [one.name for one in found]
    lines = [f"{one.name}  ({one.details})" if names.count(one.name) > 1 else one.name for one in found]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    listed = "".join(f"\n    {line}" for line in [*lines[:SHOWN], *more])
    return UserError(f"{text!r} names {len(found)} variants:{listed}", "say which, by more of its name or by its id")


def _list(words: Iterable[str]) -> str:
    every = list(words)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
