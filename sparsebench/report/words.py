"""How numbers and a ledger's texts are written; how pruning changes normally distributed weights; and the sign test."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

from sparsebench import escape
from sparsebench.ledger.statistics import Metric
from sparsebench.units import size

DASH = "–"


class LedgerText:
    """Text from a ledger: compared as it is, and written as Markdown that shows the same text without any markup.

    It is no ``str``, so that neither a template nor a function can write it unescaped without asking for ``raw``.
    """

    def __init__(self, raw: str) -> None:
        """``raw`` is the text as the ledger has it."""
        self.raw = raw

    def __str__(self) -> str:
        return escape.markdown(self.raw)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __eq__(self, other: object) -> bool:
        return self.raw == (other.raw if isinstance(other, LedgerText) else other)

    def __lt__(self, other: LedgerText) -> bool:
        return self.raw < other.raw

    def __len__(self) -> int:
        return len(self.raw)

    def __hash__(self) -> int:
        return hash(self.raw)


def escaped(value: Any) -> Any:
    """Return a value of the ledger as templates get it: texts, also those in lists, as ``LedgerText``."""
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return LedgerText(value) if isinstance(value, str) else value


def raw(value: object) -> str:
    """Return a text unescaped: only to decide by, or for a fragment that one of our own queries composed."""
    return value.raw if isinstance(value, LedgerText) else str(value)


def code(value: object) -> str:
    """Return a text as a code span."""
    return escape.code(raw(value))


def amount(number: float) -> str:
    """Return a number of parameters or tokens as people say it: ``128``, ``7 thousand``, ``134.5 million``, ``1.32 billion``."""
    if number < 999.5:
        return f"{number:.0f}"
    if number < 999_500:
        return f"{number / 1e3:.0f} thousand"
    return f"{number / 1e6:.1f} million" if round(number / 1e6, 1) < 1000 else f"{number / 1e9:.2f} billion"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as a percentage, such as ``12.5%``; a share between 0 and 1 is never rounded to 0% or 100%."""
    if share in (0, 1):
        return f"{share:.0%}"
    rounded, step = round(100 * share, digits), 10**-digits
    if 0 < share < 1 and rounded in (0, 100):
        return f">{100 - step:.{digits}f}%" if rounded else f"<{step:.{digits}f}%"
    return f"{100 * share:.{digits}f}%".replace("-", "−")


def spread(shares: Sequence[float], digits: int = 0) -> str:
    """Return the least and the largest of some shares: ``57–78%``, or ``61%`` where both look the same; a dash without any."""
    if not shares:
        return DASH
    lowest, highest = (percent(share, digits) for share in (min(shares), max(shares)))
    return highest if lowest == highest else f"{lowest.removesuffix('%')}–{highest}"


def seconds(times: Sequence[float]) -> str:
    """Return the least and the largest of some times, in seconds: ``0.1–12``; nothing without any."""
    formatted = [f"{time:.1f}" if time < 9.95 else f"{time:,.0f}" for time in (min(times), max(times))] if times else []
    return "–".join(dict.fromkeys(formatted))


def sparsity(share: float) -> str:
    """Return a sparsity as it was asked for: ``50%``, ``99.5%``."""
    return f"{round(100 * share, 4):g}%"


def bare(value: float) -> str:
    """Return a perplexity, or a similar number, with two to four digits: ``25.03``, ``412``, ``8,210``, ``2.4e5``."""
    if abs(value) < 1e4:
        return f"{value:,.{2 if abs(value) < 100 else 0}f}"
    return re.sub(r"e\+?0*", "e", f"{value:.1e}")


def perplexity(value: float) -> str:
    """Return a perplexity; where the model has collapsed, say so, because the number then means nothing more."""
    return f"collapsed ({bare(value)})" if value > collapse() else bare(value)


def collapse() -> float:
    """Return the perplexity above which a model has collapsed."""
    return Metric.named("perplexity").collapsed_above or math.inf


def signed(value: float) -> str:
    """Return a difference of perplexities with its sign: ``+6.12``."""
    return f"{'−' if value < 0 else '+'}{bare(abs(value))}"


def points(share: float) -> str:
    """Return a difference between two shares in percentage points, to two significant digits."""
    # Read back, because `.2g` alone writes 100 as 1e+02.
    formatted = f"{float(f'{100 * share:.2g}'):g}" if abs(share) >= 1e-5 or share == 0 else "less than 0.001"
    return f"{formatted} percentage point{'s' * (formatted not in ('1', '-1'))}".replace("-", "−")


def one_line(text: object) -> str:
    """Return what a template wrote on several lines as one: single spaces, none before a mark that closes."""
    return re.sub(r" (?=[,.;:)])|(?<=\() ", "", " ".join(str(text).split()))


def paragraph(text: object) -> str:
    """Return what a template wrote on several lines as a paragraph of one line; nothing for nothing."""
    line = one_line(text)
    return f"\n\n{line}\n\n" if line else ""


def listed(words: Sequence[object]) -> str:
    """Join words: ``a``, ``a and b``, ``a, b and c``."""
    texts = [str(word) for word in words]
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


NICKNAMES = {"qwen2.5-coder-1.5b": "coder", "smollm2-135m": "smol"}
"""What running text calls models with long names; the first section introduces these."""


def called(name: object) -> object:
    """Return what running text calls a model, such as ``smol``; most models have only their name."""
    return NICKNAMES.get(raw(name), name)


def versions(libraries: object) -> str:
    """Return ``torch 2.8.0, transformers 5.24.0`` for a JSON object of versions, without libraries that are absent."""
    installed = [item for item in json.loads(raw(libraries)).items() if item[1] != "absent"]
    return ", ".join(escape.markdown(f"{name} {version}") for name, version in installed)


class _Cells(string.Formatter):
    """Python's format language plus ``size`` (bytes), ``pct`` (a share), ``ppl`` (perplexity), ``code`` (a code span),
    ``ours`` (Markdown composed by one of our own queries, unescaped) and more. Lists are joined by plus signs."""

    special: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "size": size,
        "pct": percent,
        "pct0": lambda share: percent(share, 0),
        "sparsity": sparsity,
        "ppl": perplexity,
        "bare": bare,
        "signed": signed,
        "code": code,
        "ours": raw,
    }

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, list):
            return " + ".join(self.format_field(item, format_spec) for item in value)
        if format_spec in self.special:
            return self.special[format_spec](value)
        formatted = format(value, format_spec)
        # A proper minus sign, in numbers only: names keep their hyphens.
        return formatted.replace("-", "−") if isinstance(value, int | float) else formatted


CELLS = _Cells()


def format_cell(pattern: str, row: Mapping[str, Any]) -> str:
    """Fill ``pattern`` from a row: of its alternatives, separated by ``||``, the first without a NULL; else a dash."""
    for option in pattern.split("||"):
        names = [name for _, name, _, _ in CELLS.parse(option) if name]
        if all(row[name] is not None for name in names):
            return CELLS.vformat(option, (), row)
    return DASH


def normal_change(share: float) -> float:
    """Return the relative change ‖w − ŵ‖ / ‖w‖ if the smallest ``share`` of normally distributed weights is zeroed."""
    if share >= 1:
        return 1.0
    edge = NormalDist().inv_cdf((1 + share) / 2)
    return math.sqrt(share - 2 * edge * NormalDist().pdf(edge))
