"""What a report says, in all of its Markdown files."""

from collections.abc import Iterable
from pathlib import Path


def whole(written: Iterable[Path]) -> str:
    """The paper and the results behind it, one after the other."""
    return "\n".join(path.read_text() for path in written if path.suffix == ".md")
