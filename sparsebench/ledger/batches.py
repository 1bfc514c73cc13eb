"""Splits what is brought into a ledger, so that memory stays bounded however much it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batched(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Split items, in order, into lists whose sizes add up to at most ``limit``, or of one item that is larger."""
    batch: list[Item] = []
    total = 0
    for item in items:
        item_size = size(item)
        if batch and total + item_size > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += item_size
    if batch:
        yield batch
