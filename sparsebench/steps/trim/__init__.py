"""Fewer tokens: what a text does not use leaves the tokenizer, the embeddings and the output head."""

from __future__ import annotations
