"""Text of others, made harmless where it is shown: on a terminal, in Markdown, and in the HTML made from that."""

from __future__ import annotations

import re

_MARKS = re.compile(r"[\\`*\[\]$~]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=www)\.")
"""What Markdown interprets within a line, GitHub's addresses too; it does not interpret an underscore between letters."""
_LINE_START = re.compile(r"^ ?(?=[#=]|[+\-](?:[ \-]|$))|^ ?\d+(?=[.)](?: |$))")
"""What turns a line that begins with it into a heading, a list or a rule."""
_HTML = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("|"): "&#124;"}


def is_text(text: str) -> bool:
    """Return whether UTF-8 can encode it: JSON, YAML and file names may contain halves of characters (surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def visible(text: str) -> str:
    r"""Return ``text`` with unprintable characters as Python writes them, such as ``\x1b``; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def markdown(text: str) -> str:
    """Return ``text`` as one line of inert Markdown: it makes no link, picture, HTML, formula or new table cell.

    GitHub alone makes a link of an e-mail address, whatever stands in it.
    """
    line = visible(re.sub(r"\s+", " ", text))
    return _LINE_START.sub(r"\g<0>\\", _MARKS.sub(r"\\\g<0>", line).translate(_HTML))


def code(text: str) -> str:
    """Return ``text`` as a code span, or as ``markdown`` where it holds what would end the span or a table cell."""
    line = visible(re.sub(r"\s+", " ", text))
    return f"`{line}`" if line.strip() and "`" not in line and "|" not in line else markdown(text)
