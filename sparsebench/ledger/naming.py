"""Resolves variants' names such as ``smollm2/wanda/0.5`` and ``smollm2/wanda/50%/int8``: a model and words of a recipe.

A name may also hold the precision, ``seed3`` and the beginning of the variant's id. The id alone is a name, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches

from sparsebench.errors import UserError
from sparsebench.ledger import sqlfiles
from sparsebench.ledger.query import Session

_ID = re.compile(r"[0-9a-f]{4,}")
_SHARE = re.compile(r"(\d*\.?\d+)(%?)")
MOST_SHOWN = 8
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
    def words(self) -> list[str]:
        """The words of the recipe."""
        return _words(self.recipe)

    @property
    def name(self) -> str:
        """The model and every word of the recipe: ``smollm2/sparsegpt/layer/50%/int8``."""
        return "/".join([self.model, *self.words])

    @property
    def details(self) -> str:
        """The id, precision, seed and calibration text, which tell it apart from variants of the same name."""
        details = (f"id {self.id[:10]}", self.dtype, f"seed {self.seed}", self.calibration.rsplit("/", 1)[-1])
        return ", ".join(filter(None, details))

    def has_word(self, word: str) -> bool:
        """Return whether ``word`` is a word of the recipe, the precision, the seed or the beginning of the id."""
        if word in (self.dtype, f"seed{self.seed}") or (_ID.fullmatch(word) and self.id.startswith(word)):
            return True
        return any(_means(word, other) for other in self.words)

    def distance(self, words: Sequence[str]) -> tuple[int, bool]:
        """Return how many words of the recipe ``words`` omit (0 if they name none), and whether their order differs."""
        omitted = sum(not any(_means(word, other) for word in words) for other in self.words)
        recipe_words = [word for word in words if any(_means(word, other) for other in self.words)]
        remaining = iter(self.words)
        in_order = all(any(_means(word, other) for other in remaining) for word in recipe_words)
        return (omitted if recipe_words else 0, not in_order)


def measured_variants(ask: Session) -> list[MeasuredVariant]:
    """Return the measured variants of a ledger."""
    return [MeasuredVariant(**row) for row in ask(sqlfiles.read("side_by_side/variants")).dicts()]


def resolve_variant(text: str, variants: Sequence[MeasuredVariant]) -> MeasuredVariant:
    """Return the one variant that ``text`` names: it has all words of ``text``, and its recipe the fewest others.

    So ``m/int8`` is not the model that was pruned first. Of two recipes with the same words, the one in the order of
    ``text`` is meant. Raises UserError when ``text`` names no variant, or several, which the message lists.
    """
    if not variants:
        raise UserError("the ledger holds no finished cell", "make some: sparsebench run MANIFEST")
    model, _, recipe = text.strip("/").partition("/")
    words = _words(recipe)
    matching = [variant for variant in variants if variant.model == model and all(map(variant.has_word, words))]
    if not words and not matching and _ID.fullmatch(model):
        matching = [variant for variant in variants if variant.id.startswith(model)]
    if not matching:
        raise _unknown_name(text, model, words, variants)
    nearest_distance = min(variant.distance(words) for variant in matching)
    nearest = [variant for variant in matching if variant.distance(words) == nearest_distance]
    if len(nearest) > 1:
        candidates = "".join(f"\n    {variant.name}  ({variant.details})" for variant in nearest[:MOST_SHOWN])
        others = f"\n    and {len(nearest) - MOST_SHOWN} more" if len(nearest) > MOST_SHOWN else ""
        message = f"{text!r} names {len(nearest)} variants:{candidates}{others}"
        raise UserError(message, "say which, by more of its name or by its id")
    return nearest[0]


def _words(text: str) -> list[str]:
    """Split a recipe, or a name, into its words: ``sparsegpt/layer 50%, then int8`` has four."""
    return [word for word in re.split(r"[/,\s]+", text) if word not in ("", "then")]


def _means(word: str, other: str) -> bool:
    """Return whether ``word`` means ``other``: its text, its value (``dense`` for ``propagate=dense``) or its share."""
    share, other_share = _SHARE.fullmatch(word), _SHARE.fullmatch(other)
    if share and other_share:
        return abs(_share(share) - _share(other_share)) < 1e-9
    return word in (other, other.partition("=")[2])


def _share(match: re.Match[str]) -> float:
    return float(match[1]) / (100 if match[2] else 1)


def _unknown_name(text: str, model: str, words: Sequence[str], variants: Sequence[MeasuredVariant]) -> UserError:
    """Return the error for an unknown name. It suggests names with the most of its words, closest spelling first."""
    models = list(dict.fromkeys(variant.model for variant in variants))
    message = f"no variant {text!r} in the ledger"
    similar = get_close_matches(model, models, 1, 0.5)
    if not similar:
        model_names = ", ".join(models[:MOST_SHOWN]) + (
            f" and {len(models) - MOST_SHOWN} more" if len(models) > MOST_SHOWN else ""
        )
        return UserError(message, f"a name is MODEL/RECIPE, such as {variants[0].name}; the models are {model_names}")

    def rank(variant: MeasuredVariant) -> tuple[int, float]:
        return -sum(map(variant.has_word, words)), -SequenceMatcher(None, text, variant.name).ratio()

    ranked = sorted((variant for variant in variants if variant.model == similar[0]), key=rank)
    names = list(dict.fromkeys(variant.name for variant in ranked))[:3]
    return UserError(message, f"did you mean {' or '.join(names)}?")
