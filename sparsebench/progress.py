"""What a person sees of work that takes long: a bar in a terminal or a notebook, else a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sparsebench.units import duration

Advance = Callable[..., None]
"""Moves a bar: called with what is done, of how much, and further words."""
LINE_SECONDS = 60.0


@contextmanager
def progress(description: str) -> Iterator[Advance]:
    """Show a bar, and remove it when done; where stderr is neither a terminal nor a notebook's, lines."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield _lines(description)
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total, words="": bar.update(
            task, completed=done, total=total, description=f"{description} {words}".rstrip()
        )


def _lines(description: str) -> Advance:
    started = last_shown = time.monotonic()
    previous = 0.0

    def advance(done: float, total: float, words: str = "") -> None:
        nonlocal started, last_shown, previous
        now = time.monotonic()
        if done < previous:  # the next step of a chain, or the next task
            started = now
        previous = done
        if now - last_shown < LINE_SECONDS or not total:
            return
        last_shown = now
        news = [f"{100 * done / total:.0f}%", *filter(None, [words])]
        if done and now > started and not words.endswith("left"):
            news.append(f"{duration((now - started) * (total - done) / done)} left")
        print(f"… {description}: {', '.join(news)}", file=sys.stderr, flush=True)

    return advance
