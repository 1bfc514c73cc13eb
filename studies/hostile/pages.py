"""What a reader's browser would do with a page or a Markdown file: what loads, runs or pretends by itself."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

STRANGER = "stranger.example"
"""What hostile texts name as their host."""


def live(path: Path) -> list[str]:
    """The hostile elements of an HTML or SVG file, or of a Markdown file as CommonMark shows it, HTML included."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".md":
        from markdown_it import MarkdownIt

        text = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    found = _Finder()
    found.feed(text)
    return list(dict.fromkeys(found.hostile))


class _Finder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.hostile: list[str] = []
        self.open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that acts by itself; a plain link to a stranger is only a link."""
        self.open = tag
        for name, value in attrs:
            goes = (value or "").strip().lower()
            loads = (
                STRANGER in goes and not (tag == "a" and name == "href") and name not in ("alt", "title", "aria-label")
            )
            if (name.startswith("on") and "alert" in goes) or goes.startswith("javascript:") or loads:
                self.hostile.append(f"a live <{tag} {name}>")

    def handle_data(self, data: str) -> None:
        """A script that is the stranger's, or a heading that is."""
        if self.open == "script" and "alert(" in data:
            self.hostile.append("a live <script>")
        if self.open in ("h1", "h2", "h3") and data.strip() == "Hostile heading":
            self.hostile.append("a heading of the stranger's")

    def handle_endtag(self, tag: str) -> None:
        """What follows belongs to something else."""
        self.open = ""
