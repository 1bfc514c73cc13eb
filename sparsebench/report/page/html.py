"""Turn Markdown into one self-contained page, which fetches nothing from anywhere.

Only the Markdown that the templates write is understood as markup: HTML in a ledger's text is shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from latex2mathml import exceptions
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

PAGE_FOLDER = Path(__file__).parent
_BARS = re.compile(r'<mo(?: stretchy="false")?>(&#x0007C;|&#x02016;)</mo>')
"""Bars of an absolute value or a norm, around which a browser would leave the space of an operator."""
MOST_SVG_BYTES = 1_500_000
"""The most bytes of an SVG on the page: a larger one, which has very many points, is replaced by its bitmap."""


def page(markdown: str, pictures: Mapping[str, Path]) -> str:
    """Return ``markdown`` as an HTML document that embeds ``pictures`` (files by link); it reads no other."""
    parser = _parser()
    tokens = shaped(parser.parse(markdown))
    titles = headings(tokens)
    body = parser.renderer.render(tokens, parser.options, {"pictures": pictures})
    script = (PAGE_FOLDER / "page.js").read_text(encoding="utf-8").strip()
    environment = Environment(
        loader=FileSystemLoader(PAGE_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=titles[0].text if titles else "Report",
        chapters=nested(titles),
        style=Markup((PAGE_FOLDER / "page.css").read_text(encoding="utf-8").strip()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        body=Markup(body),
    )


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.use(anchors_plugin, max_level=6)  # those that GitHub would give, so that links into report.md work here too
    parser.use(dollarmath_plugin, renderer=_formula, allow_labels=False, allow_space=False, allow_blank_lines=False)
    rules: dict[str, Callable[..., str]] = {
        "figure": _figure,
        "image": lambda _, tokens, at, *__: escape(tokens[at].content),
        "heading_close": _heading_close,
        "table_open": _table_open,
        "table_close": lambda *_: "</table>\n</div>\n",
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def _formula(latex: str, options: Mapping[str, bool]) -> str:
    """Return a formula as MathML, which browsers draw by themselves; one that cannot be converted stays as written."""
    # The converter's errors have no base class of their own.
    converter_errors = [
        kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    unreadable: tuple[type[Exception], ...] = (LookupError, ValueError, *converter_errors)
    try:
        formula = convert(latex, display="block" if options["display_mode"] else "inline")
        return _BARS.sub(r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', formula)
    except unreadable:
        return f"<code>{escape(latex)}</code>"


def _heading_close(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
    link = f'<a class="anchor" href="#{tokens[index - 2].attrs["id"]}" aria-label="Link to this section">#</a>'
    return f"{link if tokens[index].tag != 'h1' else ''}</{tokens[index].tag}>\n"


def _table_open(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
    label = escape(f"Table in “{tokens[index].meta['section']}”")
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{label}">\n<table>\n'


def _figure(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    description, path = escape(tokens[index].content), env["pictures"].get(unquote(str(tokens[index].attrs["src"])))
    caption = renderer.renderInline(tokens[index].children or [], options, env) or description
    if path is None:
        return f"<p>{caption}</p>\n"
    source = _embedded(path)
    return (
        f'<figure>\n<div class="scroll" tabindex="0" role="group" aria-label="Picture">'
        f'<img alt="{description}" src="{source}"></div>\n<figcaption>{caption}</figcaption>\n</figure>\n'
    )


def _embedded(path: Path) -> str:
    """Return a picture as a data URI: the SVG if one lies beside the bitmap, since it stays sharp at every size."""
    svg = path.with_suffix(".svg")
    if svg.is_file() and svg.stat().st_size <= MOST_SVG_BYTES:
        return _data_uri("image/svg+xml", _minified(svg.read_text(encoding="utf-8")).encode())
    return _data_uri("image/png", path.read_bytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _minified(svg: str) -> str:
    """Return an SVG without its prolog, metadata, comments and spare white space."""
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", svg)).strip()


MOST_UNWRAPPED = 32
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
        Heading(int(token.tag[1:]), str(token.attrs["id"]), _text(tokens[index + 1]))
        for index, token in enumerate(tokens)
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
    figure_tokens: list[Token] = []
    index = 0
    while index < len(tokens):
        children = _paragraph(tokens, index)
        if [child.type for child in children] != ["image"]:
            figure_tokens.append(tokens[index])
            index += 1
            continue
        image, caption = children[0], _paragraph(tokens, index + 3)
        if all(child.type != "em_open" for child in caption[:2]):  # the parser puts an empty text before it
            caption = []
        caption_tokens = [child for child in caption if child.type not in ("em_open", "em_close")]
        figure_tokens.append(
            Token("figure", "figure", 0, attrs=dict(image.attrs), content=image.content, children=caption_tokens)
        )
        index += 6 if caption else 3
    return figure_tokens


def _paragraph(tokens: Sequence[Token], index: int) -> Sequence[Token]:
    """Return what is inside the paragraph that begins at a token; nothing where none begins."""
    is_paragraph = index < len(tokens) and tokens[index].type == "paragraph_open"
    return (tokens[index + 1].children or []) if is_paragraph else []


def _tables(tokens: Sequence[Token]) -> list[Token]:
    """Give cells a class, and headings their scope; the first cell of a row is the row's heading."""
    section, is_first, in_body = "", False, False
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            section = _text(tokens[index + 1])
        elif token.type == "table_open":
            token.meta["section"] = section
        elif token.type in ("tbody_open", "thead_open"):
            in_body = token.type == "tbody_open"
        elif token.type == "tr_open":
            is_first = True
        elif token.type in ("th_open", "td_open"):
            scope = "row" if in_body else "col"
            heading = is_first if in_body else bool(tokens[index + 1].content)
            _cell(token, tokens[index + 1], tokens[index + 2], scope if heading else "")
            is_first = False
    return list(tokens)


def _cell(token: Token, inline: Token, end: Token, scope: str) -> None:
    """Make a cell a heading of ``scope`` unless that is empty; its class says how it may be wrapped."""
    numeric = "right" in str(token.attrs.get("style", ""))
    kind = "text" if len(inline.content) > MOST_UNWRAPPED else "name"
    if numeric:
        kind = "number"
    shade = next(
        (f" {name}" for mark, name in SHADES if inline.content.startswith(mark) or f" {mark}" in inline.content), ""
    )
    token.attrs = {"class": kind, "scope": scope} if scope else {"class": kind + shade}
    token.tag = end.tag = "th" if scope else "td"


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [])
