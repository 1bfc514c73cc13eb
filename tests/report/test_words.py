import numpy as np
import pytest

from sparsebench.report import words


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0, 1, "0%"),
        (1, 1, "100%"),
        (0.125, 1, "12.5%"),
        (0.00001, 1, "<0.1%"),
        (0.99999, 1, ">99.9%"),
        (0.004, 0, "<1%"),
        (0.999, 0, ">99%"),
        (0.995, 0, ">99%"),
        (0.005, 0, "<1%"),
        (-0.25, 0, "−25%"),
        (1.08, 0, "108%"),
    ],
)
def test_a_share_is_never_rounded_to_nothing_or_to_all(share: float, digits: int, text: str) -> None:
    assert words.percent(share, digits) == text


def test_a_difference_of_shares_is_in_points() -> None:
    assert [words.points(share) for share in (0, 7e-7, 0.0079, 0.999, -0.25)] == [
        "0 percentage points",
        "less than 0.001 percentage points",
        "0.79 percentage points",
        "100 percentage points",
        "−25 percentage points",
    ]


def test_a_sparsity_reads_as_it_was_asked_for() -> None:
    assert [words.sparsity(share) for share in (0.1, 0.995, 1 - 1 / 3)] == ["10%", "99.5%", "66.6667%"]


def test_bytes_read_as_people_read_them() -> None:
    assert [words.size(count) for count in (12, 999.6, 4096, 269_100_000, 999_960_000, 2_690_000_000)] == [
        "12 B",
        "1.0 kB",
        "4.1 kB",
        "269.1 MB",
        "1.00 GB",
        "2.69 GB",
    ]
    assert [words.amount(count) for count in (128, 999, 999.6, 7_168, 999_600, 134_500_000, 999_970_000)] == [
        "128", "999", "1 thousand", "7 thousand", "1.0 million", "134.5 million", "1.00 billion",
    ]  # fmt: skip


def test_times_and_points() -> None:
    assert [words.seconds(times) for times in ([], [0.1, 12], [9.97, 10.01])] == ["", "0.1–12", "10"]
    assert [words.points(share) for share in (0.02, 0.01, -0.01, 0.1)] == [
        "2 percentage points", "1 percentage point", "−1 percentage point", "10 percentage points",
    ]  # fmt: skip


def test_listed() -> None:
    assert [words.listed(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_a_cell_takes_the_first_pattern_whose_columns_are_known() -> None:
    row = {"score": 0.5, "low": None, "name": "all-MiniLM", "change": -0.25, "parts": [1000, 2000]}
    assert words.cell("{score:.2f} [{low:.2f}]||{score:.2f}", row) == "0.50"
    assert words.cell("{low:.2f}", row) == words.DASH
    assert words.cell("{name} {change:+.2f}", row) == "all-MiniLM −0.25"
    assert words.cell("{parts:size}", row) == "1.0 kB + 2.0 kB"


def test_absent_libraries_are_left_out() -> None:
    assert words.versions('{"torch": "2.8.0", "gone": "absent", "numpy": "2.0"}') == "torch 2.8.0, numpy 2.0"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_the_normal_reference_agrees_with_drawn_numbers(share: float) -> None:
    drawn = np.sort(np.abs(np.random.default_rng(0).normal(size=400_000)))
    removed = drawn[: round(share * drawn.size)]
    assert words.normal_change(share) == pytest.approx(np.sqrt((removed**2).sum() / (drawn**2).sum()), abs=3e-3)


def test_removing_all_changes_all() -> None:
    assert words.normal_change(1.0) == 1


def test_a_perplexity_above_ten_thousand_is_called_collapsed() -> None:
    shown = [words.perplexity(value) for value in (25.034, 412.4, 8210.4, 10_000, 10_001, 243_842, 2.2e17)]
    assert shown == ["25.03", "412", "8,210", "1.0e4", "collapsed (1.0e4)", "collapsed (2.4e5)", "collapsed (2.2e17)"]
    assert [words.signed(value) for value in (6.123, -0.5, 0.0)] == ["+6.12", "−0.50", "+0.00"]
