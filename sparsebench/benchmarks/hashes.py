"""Hashes that identify what was asked: prompts, documents, and the contexts that documents share.

Several questions on one passage carry less information than as many on different passages, so they form one cluster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

CONTEXTS = (
    "passage", "context", "paragraph", "article", "story", "premise", "support", "goal", "source_id", "sentence1",
)  # fmt: skip
"""Fields that hold a document's context, in the order in which they are looked up. They are those of BoolQ, SQuAD,
MultiRC, RACE, CoQA, NLI tasks, SciQ, PIQA, HellaSwag (the video or article that its contexts are cut from), GLUE's RTE.
"""
_START = 3
"""Number of first words that WinoGrande's twins, which differ only in the word that decides, always share."""


def of_prompt(*texts: str) -> str:
    """Return the sha1 of what the model is shown of one document."""
    return hashlib.sha1("\x1f".join(texts).encode()).hexdigest()


def of_documents(rows: Iterable[object]) -> str:
    """Return the sha256 of documents as they are in the data, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def cluster(document: Any) -> str | None:
    """Return a short name for an lm-eval document's context, the same for all that share it; None if it has none."""
    if not isinstance(document, Mapping):
        return None
    options = document.get("option1"), document.get("option2")
    if isinstance(document.get("sentence"), str) and all(isinstance(option, str) for option in options):
        return of_context("twins", *sorted(map(str, options)), *document["sentence"].split()[:_START])
    for field in CONTEXTS:
        text = document.get(field)
        if isinstance(text, str) and text.strip():
            return of_context(text)
    return None


def of_context(*texts: str) -> str:
    """Return the name of the cluster with these texts as context: 12 hex digits of their sha1."""
    return hashlib.sha1("\x1f".join(text.strip() for text in texts).encode()).hexdigest()[:12]
