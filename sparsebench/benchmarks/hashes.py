"""Names for what was asked: the same hash, the same documents and the same prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable


def of_shown(*texts: str) -> str:
    """The sha1 of what the model is shown of one document."""
    return hashlib.sha1("\x1f".join(texts).encode()).hexdigest()


def of_documents(rows: Iterable[object]) -> str:
    """The sha256 of documents as the data has them, in order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()
