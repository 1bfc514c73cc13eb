"""What is wrong with a manifest: every problem with its place, its line of text and a way out."""

from __future__ import annotations

import difflib
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsebench.errors import UserError

WIDTH = 80
LONGEST = 500
"""Characters of a message, a key or a hint that are shown."""
SHOWN, MOST = 20, 50
"""How many problems are shown, and how many are looked for."""
_COMPARED = 1000
"""Names that a word is compared with."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong, at one place.

    ``line`` and ``column`` count from 1 (0: the file as a whole), in characters. ``key`` is the dotted way there,
    such as ``models[0].source``. ``excerpt`` is that line, and ``span`` how many of its characters are meant.
    """

    path: str
    line: int
    column: int
    key: str
    message: str
    expected: str = ""
    hint: str = ""
    excerpt: str = ""
    span: int = 1

    def render(self, width: int = WIDTH) -> str:
        """Plain text, at most ``width`` columns wide but for the place, which stays in one piece to be clicked on."""
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        lines = [f"{place}: {_short(self.key)}" if self.key else place, *_wrapped("  ", self.message, width)]
        if self.line:
            lines += _excerpt(self, width)
        if self.expected:
            lines += _wrapped("  expected: ", self.expected, width)
        if self.hint:
            lines += _wrapped("  → ", self.hint, width)
        return "\n".join(lines)


class ManifestError(UserError):
    """Everything wrong with one manifest, in the order of its lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems)))
        blocks = [problem.render() for problem in self.problems[:SHOWN]]
        count = len(self.problems)
        if count > 1:
            blocks.insert(0, f"{count}{' or more' * (count >= MOST)} problems in {self.problems[0].path}")
        if count > SHOWN:
            blocks.append(f"and {count - SHOWN}{' or more' * (count >= MOST)} more problems")
        super().__init__("\n\n".join(blocks))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:  # type: ignore[override]
        return type(self), (self.problems,)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that resembles ``word`` most, if any is close; of very many, one that begins like it."""
    if len(word) > LONGEST:
        return None
    all_names = list(known)
    if len(all_names) > _COMPARED:
        all_names = [name for name in all_names if name[:2].casefold() == word[:2].casefold()][:_COMPARED]
    names = {name.casefold(): name for name in all_names}
    close = difflib.get_close_matches(word.casefold(), names, n=1)
    return names[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean …?`` with the closest known word, or nothing."""
    close = closest(word, known)
    return f"did you mean `{close}`?" if close else ""


def one_of(words: Sequence[str]) -> str:
    """``a``, ``a or b``, ``one of a, b, c``; a long list is cut."""
    quoted = [f"`{word}`" for word in words[:12]]
    if len(words) > len(quoted):
        return f"one of {', '.join(quoted)} and {len(words) - len(quoted)} more"
    return " or ".join(quoted) if len(quoted) < 3 else f"one of {', '.join(quoted)}"


def _wrapped(lead: str, text: str, width: int) -> list[str]:
    lines: list[str] = []
    for part in _short(text).splitlines():
        first = lead if not lines else " " * len(lead)
        lines += textwrap.wrap(
            part, width, initial_indent=first, subsequent_indent=" " * len(lead), break_on_hyphens=False
        )
    return lines


def _excerpt(problem: Problem, width: int) -> list[str]:
    gutter = f"  {problem.line} | "
    room = width - len(gutter)
    # Of a line of a million characters only some are looked at.
    left = max(0, problem.column - 1 - room)
    start = problem.column - 1 - left
    cells = [char if char.isprintable() else " " for char in problem.excerpt[left : left + 4 * room]]
    begin = max(0, start - room // 3) if _columns(cells) > room else 0
    ahead = "… " if begin else ""
    end = min(len(cells), begin + room)
    while _columns(cells[begin:end]) > room - len(ahead) - 2 * (end < len(cells)):
        end -= 1
    shown = ahead + "".join(cells[begin:end]) + (" …" if end < len(cells) else "")
    offset = len(ahead) + _columns(cells[begin:start])
    carets = max(1, _columns(cells[start : min(start + problem.span, end)]))
    return [(gutter + shown).rstrip(), " " * (len(gutter) - 2) + "| " + " " * offset + "^" * carets]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _columns(cells: Sequence[str]) -> int:
    """How many terminal columns some characters take."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in cells)
