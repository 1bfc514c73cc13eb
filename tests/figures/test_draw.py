"""Pictures: every shipped figure, the same bytes each time, nothing clipped or overlapping, however many series."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.axes import Axes

from sparsebench.errors import QueryError, UserError
from sparsebench.figures import draw as drawing
from sparsebench.figures import style
from sparsebench.figures.draw import Rendered, draw
from sparsebench.figures.names import apart
from sparsebench.figures.spec import SHIPPED, listing, parse
from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from tests.figures.pictures import NAMES, SAMPLED, SPECS, Drawn, exploding, table
from tests.ledger import samples
from tests.report import calibrated

NOWHERE = Path("nowhere")


def render(*asked: Any, **settings: Any) -> list[Rendered]:
    """All at once."""
    return list(drawing.render(*asked, **settings))


BY_HALVES = ("retained", "score", "size")
"""Figures whose findings are about 50% and 90% zeros."""
SAMPLE = ("engines",)
"""The others are looked at by the long tests."""


@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.long) for name in SAMPLED]
)
def test_a_shipped_figure_is_rendered_the_same_every_time(name: str, ledger: Path, tmp_path: Path) -> None:
    """Whatever a person's own matplotlib settings are."""
    written = []
    for folder, own in (("first", {}), ("second", {"font.size": 20, "axes.facecolor": "red"})):
        with matplotlib.rc_context(own):
            (done,) = render(ledger, [name], tmp_path / folder, ("png", "svg", "pdf"), NOWHERE)
            assert own.items() <= matplotlib.rcParams.items()
        assert done.skipped == ""
        assert [path.name for path in done.paths] == [f"{name}.{end}" for end in ("png", "svg", "pdf")]
        written.append([path.read_bytes() for path in done.paths])
    assert written[0] == written[1]
    assert all(len(file) > 5000 for file in written[0])


def test_a_sparsity_that_was_counted_is_told_as_the_one_that_was_asked_for(tmp_path: Path) -> None:
    """Masks from a file have the sparsity that they turn out to have."""
    records = samples.sample(samples.small())
    counted = json.loads(json.dumps(records), parse_float=lambda text: float(text) - 1e-9 * (text in ("0.5", "0.9")))
    findings = []
    for number, held in enumerate((records, counted)):
        Ledger(tmp_path / f"{number}.duckdb").ingest(held)
        with query.session(tmp_path / f"{number}.duckdb") as ask:
            findings.append({name: ask(parse(SHIPPED / f"{name}.sql").sql).dicts()[0]["finding"] for name in BY_HALVES})
    assert findings[0] == findings[1]


@pytest.mark.long
def test_a_figure_without_rows_is_left_out_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "empty.duckdb"
    Ledger(path).ingest(samples.sample(samples.small())[:1])
    found = render(path, [], tmp_path / "out", ("png",), NOWHERE)
    assert [done.name for done in found] == NAMES
    assert all(done.skipped and not done.paths for done in found)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_random_weights_are_left_out_of_scores_and_structure_and_marked_elsewhere(tmp_path: Path) -> None:
    rehearsed = samples.sample(
        samples.manifest(
            models=[{"name": "big", "source": "random", "family": "decoder", "architecture": {"hidden_size": 8}}],
            variants=[{"prune": "magnitude", "sparsity": [0.5]}],
            runtime={"engines": ["deepspeed"], "ranks": [1]},
        )
    )
    path = tmp_path / "rehearsal.duckdb"
    Ledger(path).ingest(rehearsed)
    done = {one.name: one for one in render(path, [], tmp_path / "out", ("png",), NOWHERE)}
    shown = {name for name, figure in done.items() if not figure.skipped}
    assert shown == {"memory", "size"}
    for name in shown:
        spec = parse(SHIPPED / f"{name}.sql")
        facets = query.run(path, spec.sql).dicts()
        assert {row[spec.get("facet")].splitlines()[0] for row in facets} == {"big (random weights)"}


def test_an_unknown_figure_is_answered_with_what_was_meant(ledger: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        render(ledger, ["scores"], tmp_path, ("png",), NOWHERE)
    assert "did you mean `score`?" in (caught.value.hint or "")


def test_a_wrong_query_is_named_with_its_line(ledger: Path, tmp_path: Path, figure: Callable[..., Any]) -> None:
    figure(
        "-- title: T\n-- kind: line\n-- x: model\n-- y: score\n\nSELECT model,\n  scoer AS score FROM results\n", "bad"
    )
    with pytest.raises(QueryError, match=r"figures/bad\.sql: line 7: Referenced column \"scoer\""):
        render(ledger, ["bad"], tmp_path, ("png",), tmp_path / "figures")


def test_a_log_axis_that_panels_share_holds_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "perplexity.sql"
    path.write_text((SPECS / "levels.sql").read_text().replace("-- yscale: log", "-- yscale: log\n-- yshare: yes"))
    rows = [row for facet, worst in enumerate((1e3, 60)) for row in exploding(3, facet + 1, worst=worst)]
    figure = draw(parse(path), table(rows), [])
    assert len(figure.axes) == 2 and all(axes.get_ylim()[1] > 1e3 for axes in figure.axes)


def test_bars_below_zero_are_drawn_whole_and_those_on_a_log_axis_begin_below_the_lowest(drawn: Drawn) -> None:
    for low, bottom in ((-3.0, -3.0), (2.0, 0.0)):
        (axes,) = drawn("bars", "x y", [(1, low), (2, 4.0)]).axes
        assert bottom - 1 < axes.get_ylim()[0] <= bottom
    (axes,) = drawn("bars", "x y", [("a", 10.0), ("b", 200.0)], yscale="log").axes
    low, high = axes.get_ylim()
    assert 5 < low < 10 < 200 < high < 400


@pytest.mark.parametrize("apart", [0, 1])
def test_points_of_a_series_apart_are_not_joined(apart: int) -> None:
    rows = [row | {"apart": row["line"] == "method+owl/0" and apart} for row in exploding(3, 1)]
    (axes,) = draw(parse(SPECS / "levels.sql"), table(rows), []).axes
    # A level has two points.
    joined = [line for line in axes.lines if len(line.get_xdata()) > 2 and line.get_linestyle() != "None"]
    assert len(joined) == 3 - apart


def test_random_is_drawn_in_grey_and_leaves_the_colours_to_others() -> None:
    found = style.series_styles(["a", "random/layer", "b"], {"random/layer"})
    assert found["random/layer"].colour == style.BACKGROUND_GREY
    assert [found[name] for name in "ab"] == list(style.series_styles(["a", "b"]).values())


def test_a_series_that_asks_for_a_place_looks_alike_in_every_figure_where_its_colour_is_free() -> None:
    wanted = {"wanda": 3, "sparsegpt": 1, "magnitude": 0, "ria": 3 + len(style.COLOURS)}  # the colour of wanda
    whole = style.series_styles(["magnitude", "wanda", "sparsegpt"], (), wanted)
    assert style.series_styles(["sparsegpt", "wanda"], (), wanted) == {
        name: whole[name] for name in ("sparsegpt", "wanda")
    }
    crowded = style.series_styles(["ria", "wanda"], (), wanted)
    assert crowded["wanda"] == whole["wanda"]
    assert crowded["ria"].colour != whole["wanda"].colour
    many = [str(number) for number in range(40)]
    alike = style.series_styles(many, (), dict.fromkeys(many, 7)).values()
    assert len({(look.colour, look.marker, str(look.dashes)) for look in alike}) == 40


def test_only_zeros_are_blue_and_only_bits_orange(ask: Callable[[str], query.Table]) -> None:
    families = ask("SELECT _kind_place('zeros'), _kind_place('bits'), _method_place('wanda')").rows[0]
    kept = set(style.COLOURS[: style.OTHERS])
    assert {style.COLOURS[place] for place in families} < kept
    models = style.series_styles([str(number) for number in range(len(style.COLOURS) - style.OTHERS)])
    assert not kept & {look.colour for look in models.values()}


def test_the_name_of_a_level_stays_and_the_others_make_room() -> None:
    assert apart([0.5] * 5, 0.06, [50, 1, 1, 1, 1])[0] == pytest.approx(0.5, abs=0.02)


def test_each_kind_of_recipe_has_a_colour_of_its_own_in_all_figures(ask: Callable[[str], query.Table]) -> None:
    kinds = ["dense", "as fetched", "zeros", "bits", "zeros + bits", "zeros + recovery", "zeros + recovery + bits",
             "smaller shapes", "smaller shapes + recovery", "skipped inputs", "experts", "bits + zeros"]  # fmt: skip
    asked = ", ".join(f"_kind_place('{kind}')" for kind in kinds)
    (places,) = ask(f"SELECT {asked}").rows
    assert len({place % len(style.COLOURS) for place in places}) == len(kinds)


def test_blocks_patterns_inputs_and_texts_have_lines_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "texts.duckdb"
    # So many documents that the dense model is above chance: else the task has no panel.
    enough = {"benchmarks": {"decoder": [{"task": "perplexity"}, {"task": "piqa", "limit": 200}]}}
    Ledger(path).ingest(calibrated.sample(**enough))
    curves = "FROM _pruned_curves WHERE scale <> 'perplexity' AND NOT dense_at_chance"
    with query.session(path) as ask:
        series = {row["line"] for row in ask(curves).dicts()}
        calibrations = ask(parse(SHIPPED / "calibration.sql").sql).dicts()
        shown = {(row["facet"].split("\n")[1], row["shown"]) for row in calibrations}
    lines = "alps/layer magnitude/layer random/layer ria/layer sparsegpt/layer wanda+owl/row wanda/row".split()
    assert series == {*lines, "sparsegpt/layer 4x4", "wanda N:M"}
    assert shown == {("wanda/row", "text 1"), ("wanda/row", "text 1, dense inputs")}
    # Another text: told apart from the usual one. Two patterns of one sparsity: each by its name.
    patterns = [{"prune": "wanda", "pattern": ["2:4", "4:8", "1:10"]}]
    Ledger(path).ingest(
        calibrated.sample("other", variants=patterns, calibration={"samples": 4, "length": 64}, **enough)
    )
    with query.session(path) as ask:
        found = ask("SELECT DISTINCT line FROM curves WHERE line LIKE 'wanda %' AND task = 'piqa' ORDER BY ALL").rows
        rows = ask(curves).dicts()
    assert [line for (line,) in found] == ["wanda 2:4, text 2", "wanda 4:8, text 2", "wanda N:M", "wanda N:M, text 2"]
    # The other text's line is shown where it has a sparsity of its own, by the name of its calibration.
    assert {row["line"] for row in rows if row["line"].startswith("wanda ")} == {"wanda N:M", "wanda N:M (text 2)"}
    assert {row["line"] for row in rows if row["bound"]} == {"random/layer"}


def test_a_line_over_words_goes_in_their_order(drawn: Drawn) -> None:
    rows = [(word, float(place)) for place, word in enumerate(("low", "mid", "high"))]
    (axes,) = drawn("line", "x y", rows, xscale="category").axes
    assert [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 3] == [[0, 1, 2]]


def test_a_curve_has_its_band_where_an_end_is_not_known(drawn: Drawn) -> None:
    rows = [(float(x), 1.0, None if x == 3 else 0.5, 1.5) for x in range(6)]
    assert drawn("curve", "x y low high", rows, low="low", high="high").axes[0].collections


def test_a_series_and_a_panel_that_are_null_have_no_name(drawn: Drawn) -> None:
    panels = drawn("line", "x y s f", [(x, x, n, n) for n in ("a", None) for x in (1, 2)], series="s", facet="f").axes
    assert [axes.get_title("left") for axes in panels] == ["a", ""]
    assert "None" not in {text.get_text() for axes in panels for text in axes.texts}


def test_only_lines_say_that_their_intervals_are_left_out(drawn: Drawn) -> None:
    rows = [(x, x + number, x + number - 0.5, x + number + 0.5, str(number)) for number in range(13) for x in (1, 2)]
    for kind, said, bands in (("line", True, 0), ("curve", False, 13)):
        found = drawn(kind, "x y low high s", rows, low="low", high="high", series="s")
        assert any("not drawn" in text.get_text() for text in found.texts) is said
        assert len(found.axes[0].collections) == bands


@pytest.mark.parametrize("kind", ["heatmap", "scatter"])
def test_a_text_may_be_the_number_0(kind: str, drawn: Drawn) -> None:
    found = drawn(kind, "x y v n", [(1, 1, 1.0, 0), (2, 2, 2.0, 7), (3, 3, 3.0, None)], value="v", text="n")
    assert {text.get_text() for text in found.axes[0].texts} - {""} == {"0", "7"}


@pytest.mark.parametrize(("kind", "scale"), [("line", "yscale"), ("forest", "xscale")])
def test_a_level_that_a_log_axis_has_no_room_for_is_named(
    kind: str, scale: str, figure: Callable[..., Any], ledger: Path, tmp_path: Path
) -> None:
    header = f"-- title: T\n-- kind: {kind}\n-- x: x\n-- y: y\n-- {scale}: log\n-- reference: chance = chance\n"
    figure(f"{header}SELECT 1 AS x, 2 AS y, 0 AS chance")
    with pytest.raises(UserError, match=r"column 'chance' gives int 0\n.*numbers above 0"):
        render(ledger, ["mine"], tmp_path, ("png",), tmp_path / "figures")


@pytest.mark.parametrize(
    ("low", "high", "knee"), [(2e4, 9e4, 1e4), (1e5, 1e6, 1e4), (9.5e3, 2e4, 1e4), (3.0, 7e9, 1e4)]
)
def test_a_log_axis_has_two_ticks_or_more_all_within_it(low: float, high: float, knee: float) -> None:
    major, minor = style.log_ticks(low, high, knee)
    assert len(major) >= 2
    assert all(low <= tick <= high for tick in (*major, *minor))


@pytest.mark.parametrize(
    ("value", "label"),
    [(999_999.7, "1e6"), (5e-324, "4.94066e-324"), (123_456.0, "1.23456e5"), (-2e-4, "-2e-4"), (0, "0")],
)
def test_a_number_is_labelled_whatever_its_size(value: float, label: str) -> None:
    assert style.number(value) == label


def test_up_to_forty_series_all_look_different_and_neighbours_in_grey_as_well() -> None:
    found = list(style.series_styles([str(number) for number in range(40)]).values())
    assert len({(look.colour, look.marker, str(look.dashes)) for look in found}) == 40
    assert len({look.colour for look in found[:8]}) == len({look.marker for look in found[:8]}) == 8
    assert len({(look.marker, str(look.dashes)) for look in found[:10]}) == 10


def test_every_engine_is_drawn_against_the_fastest_dense_model(ask: Callable[[str], query.Table]) -> None:
    rows = ask(parse(SHIPPED / "engines.sql").sql).dicts()
    asked = """
        SELECT engine, phase, speedup FROM _headlines JOIN _recipes USING (variant_id) LEFT JOIN gate USING (variant_id)
        WHERE ranks = 1 AND NOT coalesce(ruined, false)"""
    names = {"sparse": "ours", "hf": "torch", "llamacpp": "llama.cpp"}
    known = {
        (names.get(row["engine"], row["engine"]), row["phase"] == "prefill", row["speedup"])
        for row in ask(asked).dicts()
    }
    drawn = {
        (row["label"].split("(")[-1].rstrip(")"), row["series"].endswith("prompt"), row["speedup"]) for row in rows
    }
    assert drawn and drawn <= known
    assert len({engine for engine, *_ in drawn}) > 1
    assert all(row["bound"] == row["series"].startswith("not passing") for row in rows)


def test_a_paper_gets_the_height_and_no_words_that_it_does_not_want(
    ask: Callable[[str], query.Table], ledger: Path, tmp_path: Path
) -> None:
    layout = style.FigureLayout(height=4.0, font="DejaVu Serif", title=False, note=False)
    size, score = (parse(SHIPPED / f"{name}.sql") for name in ("size", "score"))
    figure, scores = draw(size, ask(size.sql), [], 3.3, layout), ask(score.sql)
    assert tuple(figure.get_size_inches()) == (3.3, 4.0)
    assert {text.get_fontname() for text in figure.texts} == {"DejaVu Serif"}
    assert all(size.title[:20] not in text.get_text() for text in figure.texts)
    assert scores.rows
    with pytest.raises(UserError, match="too low"):
        draw(score, scores, [], 3.3, style.FigureLayout(height=1.0))
    with pytest.raises(UserError, match="^--font Nonesuch"):  # once, for all figures
        list(drawing.render(ledger, [], tmp_path, layout=style.FigureLayout(font="Nonesuch")))


def test_a_label_is_a_text_whatever_it_holds(figure: Callable[[str], Any], tmp_path: Path) -> None:
    spec = figure("-- kind: bars\n-- title: t\n-- x: label\n-- y: value\n-- series: label\nSELECT 1")
    pictures = []
    for label in ("$\\frac{", "$x^2$", "\x1b[31m\0", "_a", "<b>&amp;--></b>"):
        paths = [tmp_path / f"{len(pictures)}.{end}" for end in ("png", "svg", "pdf")]
        draw(spec, query.Table(("label", "value"), ((label, 1.0), ("z", 2.0))), paths)
        pictures.append([path.read_bytes() for path in paths])
        assert b"\x1b" not in pictures[-1][1] and b"<b>" not in pictures[-1][1]
    assert len({picture[0] for picture in pictures}) == len(pictures)


def test_what_a_figure_has_found_is_its_title(ledger: Path, tmp_path: Path) -> None:
    header = "-- title: Rows\n-- finding: said\n-- kind: bars\n-- x: x\n-- y: y\n"
    for name, said in (("told", "'One beats two'"), ("silent", "NULL")):
        (tmp_path / f"{name}.sql").write_text(f"{header}SELECT 'a' AS x, 1 AS y, {said} AS said")
    done = render(ledger, ["told", "silent"], tmp_path / "out", ("svg",), tmp_path)
    assert [figure.title for figure in done] == ["One beats two", "Rows"]
    (tmp_path / "told.sql").write_text(f"{header}SELECT 'a' AS x, 1 AS y, 'red' || chr(27) || '[31m $x^' AS said")
    (hostile,) = render(ledger, ["told"], tmp_path / "out", ("svg",), tmp_path)
    assert hostile.title.isprintable() and "\x1b" not in hostile.paths[0].read_text()
    (tmp_path / "told.sql").write_text(f"{header}SELECT 'a' AS x, 1 AS y")
    with pytest.raises(UserError, match="line 2: `finding` names 'said'"):
        render(ledger, ["told"], tmp_path / "out", ("svg",), tmp_path)


def test_a_level_crosses_the_group_that_shares_it_and_else_its_own_bar(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[float, float, float]] = []
    monkeypatch.setattr(Axes, "hlines", lambda _, y, begin, end, **__: lines.append((y, begin, end)))
    rows = [("one", 3, "a", 1), ("one", 3, "b", 1), ("two", 3, "a", 1), ("two", 3, "b", 2)]
    drawn("bars", "x y s level", rows, series="s", reference="level = l")
    whole = {(y, round(begin, 2), round(end, 2)) for y, begin, end in lines if begin < 0.5}
    assert whole == {(1, -0.41, 0.41)}
    first, second = sorted(line for line in lines if line[1] > 0.5)
    assert (first[0], second[0]) == (1, 2) and 0.59 <= first[1] < first[2] <= second[1] < second[2] <= 1.41


def test_one_broken_figure_does_not_stop_the_others(ledger: Path, tmp_path: Path) -> None:
    header = "-- title: T\n-- kind: bars\n-- x: x\n-- y: y\n"
    texts = {"a": f"{header}SELECT nothing", "b": "-- wrong: header\n", "z": f"{header}SELECT 'a' AS x, 1 AS y"}
    for name, text in texts.items():
        (tmp_path / f"{name}.sql").write_text(text)
    with pytest.raises(UserError, match=r"2 figures cannot be drawn: .*a\.sql.*nothing.*; .*b\.sql, line 1"):
        render(ledger, ["a", "b", "z"], tmp_path / "out", ("svg",), tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["z.svg"]
    # What is not asked for is not read: a report of other pictures needs no header of this one.
    assert [spec.name for spec in listing(tmp_path, {"z"})] == ["z"]
    with pytest.raises(UserError, match=r"b\.sql, line 1"):
        listing(tmp_path)


PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "own-figure.md").read_text(encoding="utf-8")


def test_the_figure_on_the_page_is_drawn(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = re.findall(r"`figures/(\w+)\.sql`:", PAGE)
    (sql,) = re.findall(r"```sql\n(.+?)```", PAGE, re.DOTALL)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / f"{name}.sql").write_text(sql)
    monkeypatch.chdir(tmp_path)
    (made,) = drawing.render(ledger, [name], tmp_path / "paper", ("pdf",))
    assert made.paths == (tmp_path / "paper" / f"{name}.pdf",)
    assert made.paths[0].stat().st_size > 5000
    assert "retained" in PAGE and "low" in PAGE
