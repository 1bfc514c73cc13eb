"""Names for what was asked, by hashes: prompts, documents, and the contexts that documents share.

Several questions on one passage say less than as many on different ones: they are one cluster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

CONTEXTS = (
    "passage", "context", "paragraph", "article", "story", "premise", "support", "goal", "source_id", "sentence1",
)  # fmt: skip
"""Fields that hold what a document is about, in the order in which they are looked for: BoolQ, SQuAD, MultiRC, RACE, CoQA, NLI
tasks, SciQ, PIQA, HellaSwag (the video or article that its contexts are cut from), GLUE's RTE."""
_START = 3
"""Words at the beginning that WinoGrande's twins (the same sentence but for the word that decides) always share."""


def of_shown(*texts: str) -> str:
    """The sha1 of what the model is shown of one document."""
    return hashlib.sha1("\x1f".join(texts).encode()).hexdigest()


def of_documents(rows: Iterable[object]) -> str:
    """The sha256 of documents as the data has them, in order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()


def cluster(document: Any) -> str | None:
    """A short name for the context of an lm-eval document, the same for all that share it; None where none is known."""
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
    """The name of the cluster of these texts: 12 hex digits of their sha1."""
    return hashlib.sha1("\x1f".join(text.strip() for text in texts).encode()).hexdigest()[:12]
