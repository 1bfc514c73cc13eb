from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparsebench.report import words


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0, 1, "0%"), (1, 1, "100%"), (0.125, 1, "12.5%"), (0.00001, 1, "<0.1%"), (0.99999, 1, ">99.9%"),
        (0.004, 0, "<1%"), (0.999, 0, ">99%"), (0.995, 0, ">99%"), (0.005, 0, "<1%"), (-0.25, 0, "−25%"), (1.08, 0, "108%"),
    ],
)  # fmt: skip
def test_a_share_is_never_rounded_to_nothing_or_to_all(share: float, digits: int, text: str) -> None:
    assert words.percent(share, digits) == text


@pytest.mark.parametrize(
    ("said", "texts"),
    [
        (words.points, {0: "0", 7e-7: "less than 0.001", 0.0079: "0.79", 0.02: "2", 0.999: "100", -0.25: "−25"}),
        (words.sparsity, {0.1: "10%", 0.995: "99.5%", 1 - 1 / 3: "66.6667%"}),
        (words.size, {12: "12 B", 999.6: "1.0 kB", 4096: "4.1 kB", 269_100_000: "269.1 MB", 999_960_000: "1.00 GB"}),
        (words.amount, {128: "128", 999.6: "1 thousand", 7_168: "7 thousand", 999_600: "1.0 million",
                        134_500_000: "134.5 million", 999_970_000: "1.00 billion"}),
        (words.signed, {6.123: "+6.12", -0.5: "−0.50", 0.0: "+0.00"}),
        (words.perplexity, {25.034: "25.03", 412.4: "412", 8210.4: "8,210", 10_000: "1.0e4", 10_001: "collapsed (1.0e4)",
                            243_842: "collapsed (2.4e5)", 2.2e17: "collapsed (2.2e17)"}),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)  # fmt: skip
def test_a_number_reads_as_people_read_it(said: Callable[[float], str], texts: dict[float, str]) -> None:
    unit = " percentage points" if said is words.points else ""
    assert {number: said(number) for number in texts} == {number: f"{text}{unit}" for number, text in texts.items()}


@pytest.mark.parametrize(
    ("said", "texts"),
    [
        (words.seconds, [([], ""), ([0.1, 12], "0.1–12"), ([9.97, 10.01], "10")]),
        (words.listed, [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]),
        (words.points, [(0.01, "1 percentage point"), (-0.01, "−1 percentage point")]),
        (words.versions, [('{"torch": "2.8.0", "gone": "absent", "numpy": "2.0"}', "torch 2.8.0, numpy 2.0")]),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_several_are_told_in_a_row(said: Callable[[Any], str], texts: list[tuple[Any, str]]) -> None:
    assert [said(given) for given, _ in texts] == [text for _, text in texts]


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("A token\n  takes 3 ms\n\n.\n", "A token takes 3 ms."),
        ("(\nsmol\n,\n2 rows\n)\n; $W_{e}\\, x$ : 1", "(smol, 2 rows); $W_{e}\\, x$: 1"),
        ("a .. b … c", "a.. b … c"),
        ("\n \n", ""),
    ],
)
def test_what_a_template_writes_on_several_lines_is_one(written: str, line: str) -> None:
    assert words.one_line(written) == line
    assert words.paragraph(written).strip() == line
    assert not line or words.paragraph(written).startswith("\n\n")


def test_a_cell_takes_the_first_pattern_whose_columns_are_known() -> None:
    row = {"score": 0.5, "low": None, "name": "all-MiniLM", "change": -0.25, "parts": [1000, 2000]}
    assert words.format_cell("{score:.2f} [{low:.2f}]||{score:.2f}", row) == "0.50"
    assert words.format_cell("{low:.2f}", row) == words.DASH
    assert words.format_cell("{name} {change:+.2f}", row) == "all-MiniLM −0.25"
    assert words.format_cell("{parts:size}", row) == "1.0 kB + 2.0 kB"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_the_normal_reference_agrees_with_drawn_numbers(share: float) -> None:
    drawn = np.sort(np.abs(np.random.default_rng(0).normal(size=400_000)))
    removed = drawn[: round(share * drawn.size)]
    assert words.normal_change(share) == pytest.approx(np.sqrt((removed**2).sum() / (drawn**2).sum()), abs=3e-3)
