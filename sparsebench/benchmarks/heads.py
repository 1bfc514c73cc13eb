"""The heads that an encoder's config.json names, and the tasks that need them: known before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsebench.benchmarks.catalog import all_tasks
from sparsebench.models.files.families import has_classifier, has_masked_lm, has_tagger

_HEADS = {"classification": "classifier", "tagging": "tagger", "harness": "masked", "pseudo_perplexity": "masked"}
"""The head that an adapter's tasks need; all other adapters use the encoder alone."""
_WORDS = {
    "classifier": "a sequence-classification head",
    "tagger": "a token-classification head",
    "masked": "a masked-language-model head",
    "none": "a plain encoder, without a head for classes",
}


def lacking(adapter: str, config: Mapping[str, Any]) -> str:
    """Return, in words, the head that an adapter needs and an encoder with this config.json lacks; empty if none."""
    needed = _HEADS.get(adapter, "none")
    if has_classifier(config):
        heads = ["classifier"]
    else:
        heads = ["none", *["masked"] * has_masked_lm(config), *["tagger"] * has_tagger(config)]
    return "" if needed in heads else _WORDS[needed]


def fitting(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the tasks in the table that an encoder with this config.json can be scored on."""
    rows = all_tasks().values()
    return [row.name for row in rows if "encoder" in row.families and not lacking(row.adapter, config)]
