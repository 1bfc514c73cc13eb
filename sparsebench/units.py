"""Durations, sizes and numbers of things in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Format a duration as exactly as an estimate deserves: ``45s``, ``3m``, ``2h05m``."""
    if seconds < 90:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 90 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(nbytes: float) -> str:
    """Format bytes for people: ``269.1 MB``."""
    for unit, digits in (("B", 0), ("kB", 1), ("MB", 1)):
        if abs(round(nbytes, digits)) < 1000:
            return f"{nbytes:.{digits}f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def counted(number: float, noun: str) -> str:
    """Format a number of things: ``1 cell``, ``2 cells``."""
    return f"{number:.15g} {noun}{'s' * (number != 1)}"
