"""Hooks on torch modules, for the time of a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any


def removing_hooks(handles: Iterable[Any]) -> ExitStack:
    """Return a context that removes the hooks of these torch ``handles`` when it ends."""
    stack = ExitStack()
    for handle in handles:
        stack.enter_context(handle)
    return stack
