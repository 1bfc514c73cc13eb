"""What is wrong with a manifest: every problem with its position, its line of text and a hint."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from sparsebench.errors import UserError

WIDTH = 80
MOST_CHARACTERS = 500
"""The most characters of a message, a key or a hint that are shown."""
PROBLEMS_SHOWN, MOST_PROBLEMS = 20, 50
"""The most problems that are shown, and the most that are looked for."""
_MOST_COMPARED = 1000
"""The most names that a word is compared with."""


@dataclass(frozen=True, order=True)
class Problem:
    """One problem, at one position.

    ``line`` and ``column`` count from 1 (0: the file as a whole), in characters. ``key`` is the dotted path of the
    value, such as ``models[0].source``. ``excerpt`` is that line, and ``span`` how many of its characters are wrong.
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

    def render(self) -> str:
        """Return plain text, wrapped at WIDTH characters. The position, which can be clicked, and the key are not."""
        position = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        lines = [f"{position}: {_short(self.key)}" if self.key else position, *_wrapped("  ", self.message)]
        if self.line:
            lines += _excerpt(self)
        if self.expected:
            lines += _wrapped("  expected: ", self.expected)
        if self.hint:
            lines += _wrapped("  → ", self.hint)
        return "\n".join(lines)


class ManifestError(UserError):
    """All problems of one manifest, in the order of its lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems)))
        blocks = [problem.render() for problem in self.problems[:PROBLEMS_SHOWN]]
        count = len(self.problems)
        if count > 1:
            blocks.insert(0, f"{count}{' or more' * (count >= MOST_PROBLEMS)} problems in {self.problems[0].path}")
        if count > PROBLEMS_SHOWN:
            blocks.append(f"and {count - PROBLEMS_SHOWN}{' or more' * (count >= MOST_PROBLEMS)} more problems")
        super().__init__("\n\n".join(blocks))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:  # type: ignore[override]
        return type(self), (self.problems,)


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the known word most like ``word``, if any is close; of very many, only those that begin like it count."""
    if len(word) > MOST_CHARACTERS:
        return None
    compared = list(choices)
    if len(compared) > _MOST_COMPARED:
        compared = [choice for choice in compared if choice[:2].casefold() == word[:2].casefold()][:_MOST_COMPARED]
    by_lower_case = {choice.casefold(): choice for choice in compared}
    matches = difflib.get_close_matches(word.casefold(), by_lower_case, n=1)
    return by_lower_case[matches[0]] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``did you mean …?`` with the closest known word, or an empty text."""
    match = closest(word, choices)
    return f"did you mean `{match}`?" if match else ""


def one_of(words: Sequence[str]) -> str:
    """Return ``a``, ``a or b`` or ``one of a, b, c``; a long list is cut."""
    quoted = [f"`{word}`" for word in words[:12]]
    if len(words) > len(quoted):
        return f"one of {', '.join(quoted)} and {len(words) - len(quoted)} more"
    return " or ".join(quoted) if len(quoted) < 3 else f"one of {', '.join(quoted)}"


def _wrapped(indent: str, text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in _short(text).splitlines():
        first_indent = indent if not lines else " " * len(indent)
        lines += textwrap.wrap(
            paragraph, WIDTH, initial_indent=first_indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
        )
    return lines


def _excerpt(problem: Problem) -> list[str]:
    """Return the part of the line around what is wrong, and a line of carets below it."""
    gutter = f"  {problem.line} | "
    width, problem_start = WIDTH - len(gutter), problem.column - 1
    is_far = problem_start > width // 3 and cell_len(problem.excerpt[: problem_start + width]) > width
    excerpt_start, ellipsis = (problem_start - width // 3, "… ") if is_far else (0, "")
    excerpt = problem.excerpt[excerpt_start : excerpt_start + width + 1]
    text = "".join(char if char.isprintable() else " " for char in excerpt)
    is_cut = cell_len(text) > width - len(ellipsis)
    shown_text = set_cell_size(text, width - len(ellipsis) - 2) if is_cut else text
    offset = cell_len(text[: problem_start - excerpt_start])
    culprit = text[problem_start - excerpt_start : problem_start - excerpt_start + problem.span]
    carets = "^" * max(1, min(cell_len(culprit), cell_len(shown_text) - offset))
    line = f"{gutter}{ellipsis}{shown_text}{' …' if is_cut else ''}".rstrip()
    return [line, " " * (len(gutter) - 2) + "| " + " " * (len(ellipsis) + offset) + carets]


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
