"""Resolves variants' names such as ``smollm2/wanda/0.5`` and ``smollm2/wanda/50%/int8``: a model and words of a recipe.

A name may also hold the precision, ``seed3`` and the beginning of the variant's id. The id alone is a name, too.
"""

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
"""The most names that an error lists."""


@dataclass(frozen=True)
class MeasuredVariant:
    """A variant that the ledger has a measurement of, as its view ``variants`` describes it."""

    id: str
    model: str
    weights: str
    dtype: str
    recipe: str
    seed: int
    calibration: str

    @property
    def name(self) -> str:
        """The model and every word of the recipe: ``smollm2/sparsegpt/layer/50%/int8``."""
        return "/".join([self.model, *_words(self.recipe)])

    @property
    def details(self) -> str:
        """The id, precision, seed and calibration text, which tell it apart from variants of the same name."""
        parts = (f"id {self.id[:10]}", self.dtype, f"seed {self.seed}", self.calibration.rsplit("/", 1)[-1])
        return ", ".join(part for part in parts if part)

    def has(self, word: str) -> bool:
        """Return whether ``word`` is a word of the recipe, the precision, the seed or the beginning of the id."""
        if word in (self.dtype, f"seed{self.seed}") or (_ID.fullmatch(word) and self.id.startswith(word)):
            return True
        return any(_same(word, own) for own in _words(self.recipe))

    def distance(self, words: Sequence[str]) -> tuple[int, bool]:
        """Return how many words of the recipe ``words`` omit (0 if they name none), and whether their order differs."""
        own = _words(self.recipe)
        left = sum(not any(_same(word, one) for word in words) for one in own)
        said, rest = [word for word in words if any(_same(word, one) for one in own)], iter(own)
        return (left if said else 0, not all(any(_same(word, one) for one in rest) for word in said))


def known(ledger: Path) -> list[MeasuredVariant]:
    """Return the measured variants of a ledger. Raises LedgerError when it cannot be opened."""
    return [MeasuredVariant(**row) for row in query.run(ledger, sqlfiles.read("side_by_side/variants")).dicts()]


def resolve(text: str, variants: Sequence[MeasuredVariant]) -> MeasuredVariant:
    """Return the one variant that ``text`` names: it has all words of ``text``, and its recipe the fewest others.

    So ``m/int8`` is not the model that was pruned first. Of two recipes with the same words, the one in the order of
    ``text`` is meant. Raises UserError when ``text`` names no variant, or several, which the message lists.
    """
    if not variants:
        raise UserError("the ledger holds no finished cell", "make some: sparsebench run MANIFEST")
    model, _, rest = text.strip("/").partition("/")
    words = _words(rest)
    found = [one for one in variants if one.model == model and all(map(one.has, words))]
    if not words and not found and _ID.fullmatch(model):
        found = [one for one in variants if one.id.startswith(model)]
    if not found:
        raise _unknown(text, model, words, variants)
    least = min(one.distance(words) for one in found)
    nearest = [one for one in found if one.distance(words) == least]
    if len(nearest) > 1:
        raise _ambiguous(text, nearest)
    return nearest[0]


def _words(text: str) -> list[str]:
    """Split a recipe, or a name, into its words: ``sparsegpt/layer 50%, then int8`` has four."""
    return [word for word in re.split(r"[/,\s]+", text) if word not in ("", "then")]


def _same(word: str, own: str) -> bool:
    """Return whether ``word`` means ``own``: its text, its value (``dense`` for ``propagate=dense``) or its share."""
    said, meant = _SHARE.fullmatch(word), _SHARE.fullmatch(own)
    if said and meant:
        return abs(_share(said) - _share(meant)) < 1e-9
    return word in (own, own.partition("=")[2])


def _share(found: re.Match[str]) -> float:
    return float(found[1]) / (100 if found[2] else 1)


def _unknown(text: str, model: str, words: Sequence[str], variants: Sequence[MeasuredVariant]) -> UserError:
    """Return the error for an unknown name. It suggests names with the most of its words, closest spelling first."""
    models = list(dict.fromkeys(one.model for one in variants))
    meant = next(iter(get_close_matches(model, models, 1, 0.5)), None)
    what = f"no variant {text!r} in the ledger"
    if meant is None:
        return UserError(what, f"a name is MODEL/RECIPE, such as {variants[0].name}; the models are {_list(models)}")
    ranked = sorted(
        (one for one in variants if one.model == meant),
        key=lambda one: (-sum(map(one.has, words)), -SequenceMatcher(None, text, one.name).ratio()),
    )
    near = list(dict.fromkeys(one.name for one in ranked))[:3]
    return UserError(what, f"did you mean {' or '.join(near)}?")


def _ambiguous(text: str, found: Sequence[MeasuredVariant]) -> UserError:
    names = [one.name for one in found]
    lines = [f"{one.name}  ({one.details})" if names.count(one.name) > 1 else one.name for one in found]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    listed = "".join(f"\n    {line}" for line in [*lines[:SHOWN], *more])
    return UserError(f"{text!r} names {len(found)} variants:{listed}", "say which, by more of its name or by its id")


def _list(words: Iterable[str]) -> str:
    every = list(words)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
