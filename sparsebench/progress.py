"""A bar with the time left, on stderr, for what a person waits for at a terminal or in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]
"""Moves a bar: called with what is done, of how much, and further words."""


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Show a bar, and remove it when done; show nothing where stderr is neither a terminal nor a notebook's."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (console.is_terminal or console.is_jupyter)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, words="": bar.update(task, completed=done, total=total)
