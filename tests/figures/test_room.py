"""Room in pictures: axes, names and lines that clip and overlap nothing, however many series."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sparsebench.figures import style
from sparsebench.figures.draw import draw
from sparsebench.figures.names import apart
from sparsebench.figures.spec import SHIPPED, parse
from sparsebench.ledger import query
from sparsebench.ledger.statistics import Metric
from tests.figures.pictures import SAMPLED, SPARSITIES, SPECS, Drawn, exploding, labels, overlaps, rows_of, table


@pytest.mark.parametrize("across", [1, 3])
def test_the_sparsity_axis_keeps_its_points_apart(across: int) -> None:
    places = style.sparsity_to_axis(np.array(SPARSITIES))
    inches = (style.WIDTH / across - 0.6) * np.diff(places) / np.ptp(places)
    assert (inches > 0.12).all()
    assert style.axis_to_sparsity(places) == pytest.approx(SPARSITIES)


@pytest.mark.parametrize(("series", "facets"), [(1, 2), (10, 1), (40, 6)])
@pytest.mark.long
def test_lines_clip_and_overlap_nothing(series: int, facets: int) -> None:
    assert overlaps(draw(parse(SHIPPED / "score.sql"), table(rows_of(series, facets)), [])) == []


@pytest.mark.parametrize(("series", "facets"), [(1, 1), (12, 1), (8, 3), (20, 3)])
@pytest.mark.long
def test_perplexities_clip_and_overlap_nothing(series: int, facets: int) -> None:
    rows = exploding(series, facets)
    figure = draw(parse(SPECS / "levels.sql"), table(rows), [])
    assert overlaps(figure) == []
    assert labels(figure.axes[0]) == ["100", "1000", "10000", "1e6", "1e10"]
    named = {text.get_text() for text in figure.axes[0].texts}
    assert {"dense", "collapsed"} <= named
    assert ({row["line"] for row in rows} <= named) == (series <= (12 if facets == 1 else 7))


@pytest.mark.parametrize(
    ("worst", "shown"),
    [
        (26, ["24", "26", "28"]),
        (60, ["30", "50", "70"]),
        (1e3, ["30", "100", "300", "1000"]),
        (1e300, ["100", "1000", "10000", "1e6", "1e10", "1e20", "1e50", "1e150", "1e300"]),
    ],
)
def test_a_log_axis_has_labels_however_short_or_long_it_is(worst: float, shown: list[str]) -> None:
    figure = draw(parse(SPECS / "levels.sql"), table(exploding(3, 1, worst=worst)), [])
    assert labels(figure.axes[0]) == shown
    assert overlaps(figure) == []


def test_the_axis_is_packed_together_from_where_models_have_collapsed() -> None:
    knee = float(parse(SPECS / "levels.sql").get("knee"))
    assert {Metric.named(name).collapsed_above for name in ("perplexity", "pseudo_perplexity")} == {knee}


@pytest.mark.parametrize("knee", [1e4, float("inf")])
def test_the_packed_axis_keeps_the_order_and_comes_back(knee: float) -> None:
    values = np.array([1.0, 25, 9999, 1e4, 1.0001e4, 1e6, 1e9, 1e100, 1e300])
    places = style.value_to_axis(values, knee)
    assert (np.diff(places) > 0).all()
    assert style.axis_to_value(places, knee) == pytest.approx(values, rel=1e-6)
    assert np.diff(style.value_to_axis(np.array([25.0, 250.0, 2500.0]), knee)) == pytest.approx([1, 1])


@pytest.mark.parametrize("wanted", [[0.5] * 12, [0.0, 0.01, 0.02, 0.9, 1.0], [-0.2, 0.3, 1.4], [0.7]])
def test_names_are_moved_apart_no_further_than_needed(wanted: list[float]) -> None:
    found = apart(wanted, 0.06)
    assert all(after - before > 0.06 - 1e-9 for before, after in pairwise(found))
    assert -1e-9 <= found[0] <= found[-1] <= 1 + 1e-9
    assert apart(found, 0.06) == pytest.approx(found)
    far = max(abs(place - found[at]) for at, place in enumerate(wanted) if 0 <= place <= 1)
    assert far <= 0.06 * (len(wanted) - 1) / 2 + 1e-9


def test_the_names_of_levels_stand_in_the_order_of_their_levels(drawn: Drawn) -> None:
    rows = [(x, y, f, 1.0, 1.1) for f in "ab" for x, y in ((0.0, 1.0), (9.0, 30.0))]
    for axes in drawn("line", "x y f dense gate", rows, facet="f", reference="gate = gate; dense = dense").axes:
        heights = {text.get_text(): text.get_window_extent().y0 for text in axes.texts}
        assert heights["dense"] < heights["gate"]


def test_no_line_runs_through_the_name_of_another(drawn: Drawn) -> None:
    """A line that ends early, below another that goes on: its name stands before its end."""
    ends = {"low": ((0.0, 0.0), (5.0, 0.0)), "high": ((0.0, -1.0), (9.0, 1.0)), "early": ((4.9, -0.5), (5.0, 0.24))}
    rows = [(x, y, name) for name, points in ends.items() for x, y in points]
    (axes,) = drawn("line", "x y s", rows, series="s").axes
    (early,) = (text for text in axes.texts if text.get_text() == "early")
    (high,) = (line for line in axes.lines if list(line.get_ydata()) == [-1.0, 1.0])
    path = high.get_transform().transform_path(high.get_path())
    assert not path.intersects_bbox(early.get_window_extent(), filled=False)


@pytest.fixture(scope="session")
def answers(ledger: Path) -> dict[str, query.Table]:
    """The rows of each sampled figure, asked for in one session, which makes each view once."""
    with query.session(ledger) as ask:
        return {name: ask(parse(SHIPPED / f"{name}.sql").sql) for name in SAMPLED}


@pytest.mark.parametrize("width", [style.WIDTH, style.COLUMN])
@pytest.mark.parametrize("name", SAMPLED)
def test_shipped_figures_clip_and_overlap_nothing(answers: dict[str, query.Table], name: str, width: float) -> None:
    figure = draw(parse(SHIPPED / f"{name}.sql"), answers[name], [], width)
    assert figure.get_figwidth() == width
    assert overlaps(figure) == []


@pytest.mark.parametrize(("layers", "models"), [(6, 1), (48, 3)])
def test_heatmaps_clip_and_overlap_nothing(layers: int, models: int) -> None:
    rows = [
        {
            "layer": layer, "kind": kind, "near_share": 0.08 + 0.001 * layer, "facet": f"model-{model}",
            "left_out": "Not drawn: model-9.", "finding": None,
        }
        for model in range(models)
        for kind in ("encoder q", "encoder k", "decoder cross_q", "decoder gate_up", "decoder down")
        for layer in range(layers)
    ]  # fmt: skip
    figure = draw(parse(SHIPPED / "structure.sql"), table(rows), [])
    assert overlaps(figure) == []
    assert any(text.get_text().endswith("Not drawn: model-9.") for text in figure.texts)


def test_cells_have_their_numbers_in_all_panels_or_in_none(drawn: Drawn) -> None:
    for blocks, written in ((6, True), (30, False)):
        rows = [(x, "q", 0.1 * x, f) for f, most in (("small", 6), ("large", blocks)) for x in range(most)]
        panels = [axes for axes in drawn("heatmap", "x y v f", rows, value="v", facet="f").axes if axes.images]
        assert [bool(axes.texts) for axes in panels] == [written, written]


@pytest.mark.parametrize("scale", ["linear", "log", "category", "sparsity"])
@pytest.mark.parametrize("points", [1, 4])
def test_lines_on_every_scale_with_any_number_of_points(drawn: Drawn, scale: str, points: int) -> None:
    rows = [(0.2 * (place + 1), 10.0 ** (place - 2), name) for place in range(points) for name in "ab"]
    found = drawn("line", "x y s", rows, series="s", xscale=scale, yscale="log")
    assert overlaps(found) == []
    assert {text.get_text() for text in found.axes[0].texts} == {"a", "b"}
