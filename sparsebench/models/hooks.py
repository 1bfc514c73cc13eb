"""Hooks of modules that are there for a while only."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any


def hooked(handles: Iterable[Any]) -> ExitStack:
    """A context at whose end the hooks that torch gave these ``handles`` for are gone."""
    stack = ExitStack()
    for handle in handles:
        stack.enter_context(handle)
    return stack
