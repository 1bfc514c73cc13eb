"""What the page adds to Markdown's own structure: figures with captions, tables with row headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it.token import Token

LONG = 32
"""A cell of more characters is running text, which needs room and may be wrapped."""
SHADES = (("✓", "kept"), ("✗", "lost"), ("≈", "lost"), ("☠", "gone"))
"""Marks of the quality gate, and the class of a cell whose best mark it is."""


@dataclass(frozen=True)
class Heading:
    """A heading, and the anchor that leads to it."""

    level: int
    anchor: str
    text: str


def shaped(tokens: Sequence[Token]) -> list[Token]:
    """Return the tokens with figures in place of captioned images, and scopes in tables."""
    return _tables(_figures(tokens))


def headings(tokens: Sequence[Token]) -> list[Heading]:
    """Return the headings in order."""
    return [
        Heading(int(token.tag[1:]), str(token.attrs["id"]), _text(tokens[at + 1]))
        for at, token in enumerate(tokens)
        if token.type == "heading_open"
    ]


def nested(ordered: Sequence[Heading]) -> list[tuple[Heading, list[Heading]]]:
    """Return each heading of the second level with those of the third below it."""
    chapters: list[tuple[Heading, list[Heading]]] = []
    for heading in ordered:
        if heading.level == 2:
            chapters.append((heading, []))
        elif heading.level == 3 and chapters:
            chapters[-1][1].append(heading)
    return chapters


def _figures(tokens: Sequence[Token]) -> list[Token]:
    """Turn a paragraph that is one image into a figure, captioned by the next one if that begins with emphasis."""
    shown: list[Token] = []
    at = 0
    while at < len(tokens):
        inside = _paragraph(tokens, at)
        if [child.type for child in inside] != ["image"]:
            shown.append(tokens[at])
            at += 1
            continue
        image, caption = inside[0], _paragraph(tokens, at + 3)
        if all(child.type != "em_open" for child in caption[:2]):  # the parser puts an empty text before it
            caption = []
        words = [child for child in caption if child.type not in ("em_open", "em_close")]
        shown.append(Token("figure", "figure", 0, attrs=dict(image.attrs), content=image.content, children=words))
        at += 6 if caption else 3
    return shown


def _paragraph(tokens: Sequence[Token], at: int) -> Sequence[Token]:
    """Return what is inside the paragraph that begins at a token; nothing where none begins."""
    begins = at < len(tokens) and tokens[at].type == "paragraph_open"
    return (tokens[at + 1].children or []) if begins else []


def _tables(tokens: Sequence[Token]) -> list[Token]:
    """Give cells a class, and headings their scope; the first cell of a row is the row's heading."""
    section, first, in_body = "", False, False
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            section = _text(tokens[at + 1])
        elif token.type == "table_open":
            token.meta["section"] = section
        elif token.type in ("tbody_open", "thead_open"):
            in_body = token.type == "tbody_open"
        elif token.type == "tr_open":
            first = True
        elif token.type in ("th_open", "td_open"):
            heading = first if in_body else bool(tokens[at + 1].content)
            _cell(token, tokens[at + 1], tokens[at + 2], ("row" if in_body else "col") if heading else "")
            first = False
    return list(tokens)


def _cell(token: Token, inline: Token, end: Token, scope: str) -> None:
    """Make a cell a heading of ``scope`` unless that is empty; its class says how it may be wrapped."""
    numeric = "right" in str(token.attrs.get("style", ""))
    kind = "number" if numeric else "text" if len(inline.content) > LONG else "name"
    shade = next(
        (f" {name}" for mark, name in SHADES if inline.content.startswith(mark) or f" {mark}" in inline.content), ""
    )
    token.attrs = {"class": kind, "scope": scope} if scope else {"class": kind + shade}
    token.tag = end.tag = "th" if scope else "td"


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [])
