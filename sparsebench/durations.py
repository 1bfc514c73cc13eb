"""Durations as people read them."""


def duration(seconds: float) -> str:
    """Format a duration as exactly as an estimate deserves: ``45s``, ``3m``, ``2h05m``."""
    if seconds < 90:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 90 else f"{minutes // 60}h{minutes % 60:02d}m"
