"""Text of others, made harmless where it is shown: on a terminal, and in Markdown and the HTML that comes of it."""

from __future__ import annotations

import re

_MARKS = re.compile(r"[\\`*\[\]$~]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown obeys within a line; an underscore between letters is none of it."""
_FIRST = re.compile(r"^ ?(?=[#=]|[+\-](?:[ \-]|$))|^ ?\d+(?=[.)](?: |$))")
"""What makes a heading, a list or a rule of a line that begins with it."""
_HTML = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("|"): "&#124;"}


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: JSON, YAML and names of files may bring halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def visible(text: str) -> str:
    r"""``text`` with what a terminal would obey written as Python writes it, such as ``\x1b``; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def markdown(text: str) -> str:
    """``text`` as one line of Markdown that says the same and does nothing: no link, picture, HTML, formula or new cell."""
    line = visible(re.sub(r"\s+", " ", text))
    return _FIRST.sub(r"\g<0>\\", _MARKS.sub(r"\\\g<0>", line).translate(_HTML))


def code(text: str) -> str:
    """``text`` as a code span; escaped as any other where it holds what would end the span or a table's cell."""
    line = visible(re.sub(r"\s+", " ", text))
    return f"`{line}`" if line.strip() and "`" not in line and "|" not in line else markdown(text)
