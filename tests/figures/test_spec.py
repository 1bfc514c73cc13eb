"""Reading a figure's header: every mistake names the file and the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import UserError
from sparsebench.figures.spec import KEYS, SHIPPED, listing, parse
from sparsebench.figures.values import drawable
from sparsebench.ledger.query import Table
from tests.figures.pictures import NAMES

GOOD = "-- title: Mine\n-- kind: line\n-- x: a\n-- y: b\n-- note: one\n-- note: two\n\n-- a comment\nSELECT 1 AS a, 2 AS b\n"
HEATMAP = "-- title: T\n-- kind: heatmap\n-- x: a\n-- y: b\n-- value: c\n"


def test_a_header_is_read_up_to_the_first_other_line(figure: Callable[[str], Any]) -> None:
    spec = figure(GOOD)
    assert (spec.name, spec.title, spec.kind) == ("mine", "Mine", "line")
    assert spec.get("note") == "one\ntwo"
    assert spec.sql == GOOD
    assert spec.lines["y"] == 4


@pytest.mark.parametrize(
    ("wrong", "words", "hint"),
    [
        ("-- titel: x", "line 5: unknown key `titel`", "did you mean `title`?"),
        ("-- kind: pie", "line 5: `kind` is 'pie'", "choose from line, curve, bars, scatter, forest, heatmap"),
        ("-- xscale: logit", "line 5: `xscale` is 'logit'", "sparsity"),
        ("-- xlabel:", "line 5: `xlabel` has no value", "horizontal axis"),
        ("-- columns: many", "line 5: `columns` is 'many'", "from 1 to 6"),
        ("-- range: 0..1", "line 5: `range` is '0..1'", "two numbers"),
        ("-- middle: 0 2", "line 5: `middle` is '0 2'", "above 0"),
        ("-- middle: 1 1.0", "line 5: `middle` is '1 1.0'", "a factor above 1"),
        ("-- ymin: none", "line 5: `ymin` is 'none'", "a number"),
        ("-- knee: -1", "line 5: `knee` is '-1'", "a number"),
        ("-- knee: 0", "line 5: `knee` is '0'", "above 0"),
        ("-- x: again", "line 5: `x` again (first on line 3)", "remove one"),
        ("-- just words", "line 5: not a `-- key: value` line", "below the header"),
    ],
)
def test_a_wrong_line_is_named(figure: Callable[[str], Any], tmp_path: Path, wrong: str, words: str, hint: str) -> None:
    lines = GOOD.splitlines()
    with pytest.raises(UserError) as caught:
        figure("\n".join([*lines[:4], wrong, *lines[4:]]))
    assert caught.value.message.startswith(f"{tmp_path}/figures/mine.sql, {words}")
    assert hint in (caught.value.hint or "")


def test_the_scale_of_colours_is_one_and_in_order_and_no_line_s(figure: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match=r"line 7: both `range` \(line 6\) and `middle`"):
        figure(f"{HEATMAP}-- range: 0 1\n-- middle: 0.5 2\nSELECT 1")
    with pytest.raises(UserError, match=r"line 6: `range` is '1 0'\n  → the lowest value comes first"):
        figure(f"{HEATMAP}-- range: 1 0\nSELECT 1")
    with pytest.raises(UserError, match="column 'c' gives float 0.0"):
        drawable(figure(f"{HEATMAP}-- middle: 1 2\nSELECT 1"), Table(("a", "b", "c"), ((1, "q", 0.0),)))
    line = figure(GOOD.replace("-- note: one", "-- middle: 1 2"))
    assert len(drawable(line, Table(("a", "b"), ((0.5, 2),))).rows) == 1


@pytest.mark.parametrize(("kind", "missing"), [("line", "y"), ("bars", "x"), ("scatter", "y"), ("heatmap", "value")])
def test_a_missing_key_is_named(figure: Callable[[str], Any], kind: str, missing: str) -> None:
    header = HEATMAP.replace("heatmap", kind).splitlines()
    with pytest.raises(UserError, match=f"the header has no `{missing}`"):
        figure("\n".join([*(line for line in header if f"-- {missing}:" not in line), "SELECT 1"]))


def test_a_column_that_the_query_does_not_give_is_named(figure: Callable[[str], Any]) -> None:
    spec = figure(GOOD)
    with pytest.raises(UserError) as caught:
        spec.check_columns(("a", "bee"))
    assert "mine.sql, line 4: `y` names 'b'" in caught.value.message
    assert caught.value.hint == "it gives a, bee"
    spec.check_columns(("a", "b"))


@pytest.mark.parametrize(("scale", "bad", "words"), [("log", 0, "above 0"), ("sparsity", 1.5, "from 0 to 1")])
def test_a_value_outside_its_scale_is_named(figure: Callable[[str], Any], scale: str, bad: float, words: str) -> None:
    spec = figure(GOOD.replace("-- note: one", f"-- xscale: {scale}"))
    with pytest.raises(UserError, match=rf"column 'a' gives \w+ {bad}") as caught:
        drawable(spec, Table(("a", "b"), ((0.5, 2), (bad, 2))))
    assert words in (caught.value.hint or "")


def test_references_are_columns_with_labels(figure: Callable[[str], Any]) -> None:
    spec = figure(GOOD.replace("-- note: one", "-- reference: lo = chance level, or so; hi"))
    assert spec.references == {"lo": "chance level, or so", "hi": "hi"}
    with pytest.raises(UserError, match=r"line 5: `reference` names 'lo'"):
        spec.check_columns(("a", "b", "hi"))


def test_the_better_end_is_named_or_a_column(figure: Callable[[str], Any]) -> None:
    for end in ("high", "low", "b"):
        figure(GOOD.replace("-- note: one", f"-- front: {end}")).check_columns(("a", "b"))
    with pytest.raises(UserError, match=r"line 5: `front` names 'up'"):
        figure(GOOD.replace("-- note: one", "-- front: up")).check_columns(("a", "b"))


def test_every_shipped_figure_is_well_formed_and_says_what_it_shows() -> None:
    shipped = [parse(path) for path in sorted(SHIPPED.glob("*.sql"))]
    assert [spec.name for spec in shipped] == NAMES
    for spec in shipped:
        assert set(spec.values) <= set(KEYS)
        assert spec.get("xlabel")
        assert spec.get("note")
        assert 0 < len(spec.get("about")) <= 110


def test_a_file_of_one_s_own_adds_or_overrides(figure: Callable[..., Any], tmp_path: Path) -> None:
    figure(GOOD, "extra")
    figure(GOOD, "score")
    found = {spec.name: spec for spec in listing(tmp_path / "figures")}
    assert sorted(found) == sorted([*NAMES, "extra"])
    assert found["score"].title == found["extra"].title == "Mine"
    assert found["size"].path.parent == SHIPPED
