"""Scatter, forest, curve and the heatmap's words: whatever the number of series or rows, nothing clips or overlaps."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from sparsebench.figures import style
from sparsebench.figures.draw import draw
from sparsebench.figures.scatter import front
from sparsebench.figures.spec import SHIPPED, parse
from sparsebench.ledger import query, sqlfiles
from sparsebench.ledger.store import Ledger
from tests.figures.pictures import SPECS, Drawn, overlaps, rows_of, table
from tests.ledger import samples
from tests.report.experiment import fill

SIZES = pytest.mark.parametrize(("series", "width"), [(3, style.WIDTH), (40, style.COLUMN)])


def costs(series: int, facets: int = 2) -> list[dict[str, Any]]:
    """Scores that rise with size, many alike."""
    generator = np.random.default_rng(series)
    return [
        {
            "megabytes": round(50 + 200 * (1 - sparsity), 0), "score": score, "low": score - 0.02, "high": score + 0.02,
            "chance": 0.5, "high_wins": True, "finding": None,
            "dense": 0.7, "bound": number == 1, "place": number, "panel": f"a-model-{facet} (dequantized)\ntask (acc)",
            "series": f"method-{number}/row",
            "text": f"{100 * sparsity:g}",
        }
        for facet in range(facets) for number in range(series) for sparsity in (0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
        for score in [0.7 - 0.2 * sparsity**2 + 0.01 * generator.normal()]
    ]  # fmt: skip


@SIZES
def test_points_and_their_texts_clip_and_overlap_nothing(series: int, width: float) -> None:
    figure = draw(parse(SPECS / "pareto.sql"), table(costs(series)), [], width)
    assert overlaps(figure) == []
    for axes in figure.axes:
        assert 1 <= len([text for text in axes.texts if text.get_text().isdigit()]) <= 7


def test_no_text_touches_the_axis(drawn: Drawn) -> None:
    """A stroke to the right of the first mark sends its text to the left, where the axis is."""
    for length in range(1, 20):
        rows = [(0.0, 1.0, "n" * length), (10.0, 2.0, "end")]
        figure = drawn("scatter", "x y text", rows, front="high", text="text")
        figure.draw_without_rendering()
        (axes,) = figure.axes
        gaps = [text.get_window_extent().x0 - axes.get_window_extent().x0 for text in axes.texts]
        assert gaps and min(gaps) > 3 * figure.dpi / 72


@pytest.mark.parametrize(
    ("better", "expected"),
    [
        ("more", [(1, 0.2), (2.5, 0.45), (3, 0.5)]),
        ("less", [(1, 0.1), (1, 0.1)]),  # points that coincide are on the front together
        ("high", [(0.5, 0.9)]),
        ("", []),
    ],
)
def test_the_front_is_what_no_other_point_beats(better: str, expected: list[tuple[float, float]]) -> None:
    points = ((3, 0.5), (1, 0.2), (1, 0.1), (1, 0.1), (2, 0.2), (4, 0.5), (2.5, 0.45))
    rows: list[dict[str, Any]] = [{"megabytes": x, "score": y, "more": True, "less": False} for x, y in points]
    rows.insert(0, {"megabytes": 0.5, "score": 0.9, "more": None, "less": None})  # stands beside the front
    spec = parse(SPECS / "pareto.sql")
    values = {key: spec.values[key] for key in ("title", "kind", "x", "y")} | {"front": better}
    found = front(rows, type(spec)(spec.name, spec.path, values, {}, ""))
    assert [(row["megabytes"], row["score"]) for row in found] == expected


def test_colours_around_a_middle_are_as_far_below_it_as_above() -> None:
    values = (0.1, 0.5, 1.0, 2.0, 2.4)
    rows = [
        {"layer": layer, "kind": "q", "rms": value, "facet": "m", "finding": None} for layer, value in enumerate(values)
    ]
    figure = draw(parse(SHIPPED / "rms.sql"), table(rows), [])
    panel, bar = figure.axes
    image = panel.images[0]
    low, half, middle, double, _ = (image.cmap(image.norm(value)) for value in values)
    assert low == image.cmap(0.0), "what lies beyond the scale has its last colour"
    assert middle == pytest.approx(image.cmap(0.5), abs=0.02)
    assert image.norm(0.5) == pytest.approx(1 - image.norm(2.0))
    assert sum(middle) > max(sum(half), sum(double))
    assert [text.get_color() for text in panel.texts] == ["black", "black", "black", "white", "white"]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["50", "70", "100", "200"]
    assert image.colorbar.extend == "min"


CHAIN = "magnitude/layer, then distill words.jsonl tokens=200000 length=64 batch=64 rate=0.001"
"""What a chain is called."""


def test_a_chains_name_takes_several_lines() -> None:
    rows = [
        {
            "speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6, "sparsity": "80%", "dense": 1,
            "facet": f"a-model-{facet}\ndecode, b1 p64 g8", "label": f"DeepSpeed, 1 rank {name}, 1.3 ms",
        }
        for facet in range(2) for name in ("dense", "magnitude/layer 80%", f"{CHAIN} 80%")
    ]  # fmt: skip
    assert overlaps(draw(parse(SPECS / "forest.sql"), table(rows), [], style.COLUMN)) == []


def test_a_chains_name_in_a_legend_takes_several_lines() -> None:
    rows = [{**row, "line": f"{row['line']}, {CHAIN}"} for row in rows_of(3, 2)]
    figure = draw(parse(SHIPPED / "score.sql"), table(rows), [], style.COLUMN)
    assert overlaps(figure) == []
    (legend,) = figure.legends
    assert all(CHAIN in text.get_text().replace("\n", " ") for text in legend.get_texts()[:3])


@SIZES
@pytest.mark.parametrize("settings", [1, 12])
@pytest.mark.long
def test_forests_clip_and_overlap_nothing(settings: int, series: int, width: float) -> None:
    generator = np.random.default_rng(0)
    rows = [
        {
            "label": f"one more token, sparse kernels ×{setting}", "speedup": middle, "speedup_low": middle - 0.1,
            "speedup_high": middle + 0.1, "sparsity": f"{number}%", "facet": f"a-model-{facet} (random weights)", "dense": 1,
        }
        for number in range(series) for facet in range(3) for setting in range(settings)
        for middle in [1 + abs(generator.normal()) / 3]
    ]  # fmt: skip
    figure = draw(parse(SPECS / "forest.sql"), table(rows), [], width)
    assert overlaps(figure) == []
    for axes in figure.axes:
        places = sorted(line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "None")
        assert len(places) == series * settings
        pixels = np.diff(axes.transData.transform([(0, place) for place in places])[:, 1])
        assert max(pixels) < 0 and places[0] > -0.5 and places[-1] < settings - 0.5, "no point hides another"


@SIZES
def test_failures_clip_and_overlap_nothing_and_every_reason_is_told(series: int, width: float) -> None:
    rows = [
        {
            "sparsity": sparsity, "row_name": f"method-{row}/layer: latency hf ×1",
            "severity": 1.0 if sparsity > 0.5 else 0.0,
            "text": "F" if sparsity > 0.5 else "·", "reason": f"reason number {row}" if sparsity > 0.5 else None,
            "model": "a-model (random weights)",
        }
        for row in range(series) for sparsity in (0.0, 0.5, 0.9, 0.99)
    ]  # fmt: skip
    figure = draw(parse(SHIPPED / "failures.sql"), table(rows), [], width)
    assert overlaps(figure) == []
    cells = {text.get_text() for text in figure.axes[0].texts}
    assert "F a" in cells and ("F nn" in cells) == (series == 40)
    told = next(text.get_text() for text in figure.texts if "reason number 0" in text.get_text())
    assert all(f"reason number {row}" in told for row in range(series))


@SIZES
def test_curves_clip_and_overlap_nothing(series: int, width: float) -> None:
    rows = [
        {
            "threshold": 2.0 ** (step / 3), "value": 100 * math.erf(2.0 ** (step / 3) * (1 + number / 50)),
            "bound": number == 0,
            "series": f"third {number}", "model": "m", "facet": f"a-model-{facet} (dequantized)\nshare below, %",
        }
        for facet in range(2) for number in range(series) for step in range(-18, 7)
    ]  # fmt: skip
    assert overlaps(draw(parse(SPECS / "curves.sql"), table(rows), [], width)) == []


@pytest.mark.parametrize("threshold", [1e-4, 0.0299, 0.0301, 0.1, 0.5, 1.0, 3.0])
def test_the_normal_distribution_s_share_is_known_to_sql(ask: Callable[[str], query.Table], threshold: float) -> None:
    found = ask(f"SELECT normal_share({threshold}::DOUBLE)").rows[0][0]
    assert found == pytest.approx(math.erf(threshold / math.sqrt(2)), rel=1e-5, abs=2e-7)


def test_curves_hold_what_is_retained_in_vs_dense_and_its_interval(ask: Callable[[str], query.Table]) -> None:
    asked = """
        SELECT c.retained, c.retained_low, c.retained_high, v.retained, v.retained_low, v.retained_high
        FROM curves c JOIN vs_dense v USING (manifest, variant_id, task, metric)
        WHERE c.retained IS NOT NULL AND c.method <> 'dense'
    """
    rows = ask(asked).rows
    assert rows
    assert all(row[:3] == row[3:] and row[1] <= row[0] <= row[2] for row in rows)
    asked = "SELECT count(*) FROM curves WHERE sparsity = 0 AND retained IS NOT NULL AND retained <> 1"
    assert ask(asked).rows == ((0,),)


def test_layers_of_a_variant_add_up_to_its_achieved_sparsity(ask: Callable[[str], query.Table]) -> None:
    asked = """
        SELECT DISTINCT l.found, r.achieved_sparsity
        FROM (SELECT manifest, variant_id, sum(zeros) / sum(params) AS found FROM layer_sparsity GROUP BY ALL) l
        JOIN results r USING (manifest, variant_id)
    """
    rows = ask(asked).rows
    assert rows
    assert all(found == pytest.approx(achieved, abs=1e-3) for found, achieved in rows)


def test_a_failed_cell_is_on_the_map_with_its_reason(ask: Callable[[str], query.Table]) -> None:
    rows = ask(parse(SHIPPED / "failures.sql").sql).dicts()
    assert {row["row_name"] for row in rows} == {"magnitude/layer: memory deepspeed ×1"}
    assert [(row["sparsity"], row["text"], (row["reason"] or "").partition(":")[0]) for row in rows] == [
        (0.5, "U", "unsupported"), (0.9, "F", "failed"),
    ]  # fmt: skip


def test_lines_begin_at_dense(ask: Callable[[str], query.Table]) -> None:
    rows = ask("FROM speedups WHERE manifest = 'engines'").dicts()
    assert {row["engine"] for row in rows} == {"hf", "sparse", "deepspeed"}
    for row in rows:
        assert row["line"] == "magnitude/layer"  # dense is where the line begins


def test_in_time_a_variant_stands_where_most_engines_ran_dense_and_it_is_fastest() -> None:
    variants = [
        # variant, kind, perplexity over 10, passes
        ("int8", "bits", 10.1, True), ("Q8_0", "bits", 10.1, True), ("saves", "zeros", 20.0, False),
        ("ruined", "zeros", 31.0, False),
    ]  # fmt: skip
    timed = [
        # variant, engine, gains, in torch's place, rivals, speed-up with interval
        ("int8", "hf", True, "torch", 1, 1.4, 1.3, 1.5),
        ("Q8_0", "llamacpp", True, "torch", 2, 1.25, 1.2, 1.3),
        ("Q8_0", "llamacpp", True, "torch", 1, 1.9, 1.8, 2.0),
        ("saves", "sparse", True, "torch", 1, 2.0, 1.9, 2.1),
        ("saves", "hf", False, "torch", 1, 2.3, 0.8, 2.9),
        ("ruined", "sparse", True, "torch", 1, 4.0, 3.9, 4.1),
    ]
    where = ("decode", 1, "any", "real", "CPU (AVX) ×2, 9 GiB", "b1 p16 g8")
    with duckdb.connect() as connection:
        for name in ("_engine_word", "_kind_place", "machine_label", "model_label", "range_label"):
            connection.execute(f"CREATE {sqlfiles.definitions()[name]}")
        connection.execute("""
            CREATE TABLE _headlines (variant_id TEXT, engine TEXT, gains BOOL, rival TEXT, rivals INT, speedup DOUBLE,
                speedup_low DOUBLE, speedup_high DOUBLE, phase TEXT, ranks INT, method TEXT, weights TEXT, machine TEXT,
                workload TEXT, record_id TEXT);
            CREATE TABLE curves (variant_id TEXT, model TEXT, weights TEXT, n INT, score DOUBLE, low DOUBLE, high DOUBLE,
                dense DOUBLE, scale TEXT);
            CREATE TABLE gate (variant_id TEXT, passes BOOL);
            CREATE TABLE _recipes (variant_id TEXT, kind TEXT, words TEXT, chance BOOL)""")
        fill(connection, "_headlines", [(*row, *where, str(number)) for number, row in enumerate(timed)])
        # Faster at another prompt: that is another panel, and this one keeps its own time.
        elsewhere = ("Q8_0", "llamacpp", True, "torch", 2, 3.0, 2.9, 3.1, *where[:-1], "b1 p32 g128", "elsewhere")
        fill(connection, "_headlines", [elsewhere])
        fill(connection, "curves", [(row[0], "m", "real", 24, row[2], 0, 99, 10, "perplexity") for row in variants])
        fill(connection, "_recipes", [(row[0], row[1], row[0], False) for row in variants])
        fill(connection, "gate", [(row[0], row[3]) for row in variants])
        rows = connection.execute(parse(SHIPPED / "kinds_time.sql").sql).df().to_dict("records")
    found = {row["label"]: (row["relative"], row["bound"]) for row in rows}
    assert found == {
        "int8 (torch)": (pytest.approx(100 / 1.4), False), "Q8_0 (llama.cpp)": (80, False), "saves (ours)": (50, True),
        "dense in torch": (100, False),
    }  # fmt: skip
    assert {row["finding"] for row in rows} == {
        "Of what passes the quality gate, fewer bits take 71% of torch's time for a token; no zeros gain"
    }


@pytest.mark.parametrize(("passing", "verb"), [(("a",), "passes"), (("a", "b"), "pass"), ((), "passes")])
def test_trained_models_that_pass_are_counted(passing: tuple[str, ...], verb: str) -> None:
    with duckdb.connect() as connection:
        for name in ("percent_label", "model_label"):
            connection.execute(f"CREATE {sqlfiles.definitions()[name]}")
        connection.execute("""
            CREATE TABLE gate (variant_id TEXT, model TEXT, ratio DOUBLE, retained DOUBLE, passes BOOL, tasks INT);
            CREATE TABLE recovered (model TEXT, variant_id TEXT, sparsity DOUBLE, trained_tokens BIGINT);
            CREATE TABLE variants (variant_id TEXT, parent TEXT, weights TEXT)""")
        for model in "abc":
            before, after = f"{model} before", f"{model} after"
            fill(
                connection,
                "gate",
                [(before, model, 2.0, None, False, 1), (after, model, 1.05, None, model in passing, 1)],
            )
            fill(connection, "recovered", [(model, after, 0.5, 1000)])
            fill(connection, "variants", [(after, before, "real")])
        rows = connection.execute(parse(SHIPPED / "training.sql").sql).df().to_dict("records")
    named = [f"{model} (50% zeros)" for model in passing] or ["no model"]
    assert all(f"{', '.join(named)} {verb} " in row["finding"] for row in rows) and rows


def test_what_is_skipped_is_not_read() -> None:
    variants = [
        # name, kind, perplexity, method, read share, MB in the packed format
        ("whole", "dense", 10.0, "dense", 1.0, 200),
        ("int8", "bits", 10.1, "none", 1.0, 100),
        ("teal", "skipped inputs", 10.9, "none", 0.75, 200),
        ("cats", "skipped inputs", 13.0, "none", 0.5, 200),
        ("ruin", "experts", 101.0, "none", 0.1, 200),
    ]
    with duckdb.connect() as connection:
        connection.execute("""
            CREATE MACRO _kind_place(kind) AS 0;
            CREATE TABLE sizes (variant_id TEXT, format TEXT, read_bytes DOUBLE);
            CREATE TABLE curves (variant_id TEXT, panel TEXT, score DOUBLE, low DOUBLE, high DOUBLE, dense DOUBLE, scale TEXT,
                method TEXT);
            CREATE TABLE _recipes (variant_id TEXT, kind TEXT, words TEXT, chance BOOL)""")
        for name, kind, score, method, share, size in variants:
            fill(connection, "curves", [(name, "p", score, 0, 99, 10, "perplexity", method)])
            fill(connection, "sizes", [(name, "packed", size * 1e6 * (1 - 0.8 * (1 - share)))])
            fill(connection, "_recipes", [(name, kind, name, False)])
        rows = connection.execute(parse(SHIPPED / "bytes_read.sql").sql).df().to_dict("records")
    assert {row["label"]: row["megabytes"] for row in rows} == pytest.approx(
        {"dense": 200, "int8": 100, "teal": 160, "cats": 120}
    )
    assert {row["finding"] for row in rows} == {
        "Within a tenth of the dense perplexity, teal reads 80% of the bytes; int8 50%"
    }


def test_what_panels_share_holds_all_of_them() -> None:
    rows = [
        {"sparsity": x, "speedup": y, "speedup_low": y, "speedup_high": y, "series": "one", "panel": panel,
         "dense": 1}
        for panel, top in (("low", 1.0), ("high", 5.0)) for x, y in ((0.0, 1.0), (0.5, top))
    ]  # fmt: skip
    figure = draw(parse(SPECS / "shared.sql"), table(rows), [])
    assert all(axes.get_ylim()[1] > 5 for axes in figure.axes)


def test_a_line_ends_at_chance_and_what_is_far_below_is_drawn_at_minus_a_quarter(tmp_path: Path) -> None:
    records = [one for one in samples.sample(samples.small()) if one.get("settings", {}).get("task") == "piqa"]
    for record in records:
        if record["variant"]["sparsity"] >= 0.5:
            wrong = [document | {"value": 0.0} for document in record["result"]["outcomes"]]
            record["result"] |= {"score": 0.0, "outcomes": wrong}
    Ledger(tmp_path / "l.duckdb").ingest(records)
    rows = query.run(tmp_path / "l.duckdb", parse(SHIPPED / "retained.sql").sql).dicts()
    assert {row["sparsity"] for row in rows if row["task"] == "piqa"} == {0, 0.5}, "90% zeros are not better than 50%"
    assert [row["retained"] for row in rows if row["sparsity"] == 0.5] == [-0.25]
    assert "not told from chance on 1 of 1 " in rows[0]["finding"]


def test_skill_kept_says_nothing_of_sparsities_without_a_score(tmp_path: Path) -> None:
    half = samples.manifest(variants=[{"prune": "magnitude", "sparsity": [0.5]}])
    Ledger(tmp_path / "l.duckdb").ingest(samples.sample(half))
    finding = query.run(tmp_path / "l.duckdb", parse(SHIPPED / "retained.sql").sql).dicts()[0]["finding"]
    assert "50% zeros" in finding and "90%" not in finding


def test_magnitudes_are_drawn_over_those_of_a_normal_distribution(ask: Callable[[str], query.Table]) -> None:
    rows = ask(parse(SHIPPED / "magnitudes.sql").query).dicts()
    models = {row["series"] for row in rows if not row["bound"]}
    assert models and {row["normal"] for row in rows} == {1}
    assert all(0.5 < row["times"] < 2 for row in rows), "the sample's weights are nearly normal"
    asked = """SELECT near_share FROM structure WHERE method = 'dense' AND model = 'smol' AND scope = 'prunable'
               AND scale = 'relative' AND threshold = 0.1 LIMIT 1"""
    (nearest,) = ask(asked).rows
    drawn = min((row for row in rows if row["series"] == "smol"), key=lambda row: abs(row["threshold"] - 0.1))
    assert drawn["times"] == pytest.approx(nearest[0] / 0.0797, rel=0.1)


def test_no_line_leads_from_dense_across_half_of_the_axis(ask: Callable[[str], query.Table]) -> None:
    asked = """SELECT bool_or(sparsity = 0) AS from_dense, min(sparsity) FILTER (sparsity > 0) AS first
               FROM _pruned_curves WHERE NOT apart GROUP BY panel, line"""
    found = set(ask(asked).rows)
    assert all(from_dense == (first <= 0.5) for from_dense, first in found) and {True, False} == {
        one for one, _ in found
    }


@pytest.mark.long
def test_figures_of_smaller_shapes_show_what_was_measured(tmp_path: Path) -> None:
    """One variant of a kind, the same in all panels; the share of the parameters beside the quality; nothing overlaps."""
    records = Path(__file__).parents[2] / "ledger" / "published" / "shapes.jsonl.zst"
    path = tmp_path / "shapes.duckdb"
    Ledger(path).rebuild([records], pytest.fail)
    found = {name: query.run(path, parse(SHIPPED / f"{name}.sql").sql) for name in ("shapes", "removed")}
    rows = found["shapes"].dicts()
    for model in {row["model"] for row in rows}:
        labels = {row["what"] for row in rows if row["model"] == model}
        assert len(labels) == len({label.rpartition(",")[0] for label in labels}) > 2
    assert {"vocabulary"} <= {row["what"].split(",")[0] for row in rows if row["panel"].endswith("bits a byte")}
    removed = found["removed"].dicts()
    assert {"neurons", "heads", "neurons and heads", "blocks"} <= {row["what"] for row in removed}
    assert all(0 < row["gone"] < 100 and row["over_dense"] > 0 for row in removed)
    for name, table_ in found.items():
        assert table_.dicts()[0]["finding"]
        assert overlaps(draw(parse(SHIPPED / f"{name}.sql"), table_, [])) == []


def test_a_point_in_the_background_keeps_the_mark_of_its_series(drawn: Drawn) -> None:
    """A kind of recipe is told by its mark, also where a variant fails the quality gate."""
    rows = [(1, 1, "bits", 5, False), (2, 2, "bits", 5, True), (3, 3, "zeros", 0, True)]
    figure = drawn("scatter", "x y kind place bound", rows, series="kind", place="place", bound="bound")
    points = {line.get_xdata()[0]: line for line in figure.axes[0].lines if line.get_marker() != "None"}
    assert points[1].get_marker() == points[2].get_marker() != points[3].get_marker()
    grey = {x for x, point in points.items() if point.get_color() == style.BACKGROUND_GREY}
    assert grey == {2, 3}
    legend = {entry.get_label(): entry.get_color() for entry in figure.legends[0].get_lines()}
    assert legend["bits"] != style.BACKGROUND_GREY == legend["zeros"]
