"""The report on calibrated methods and perplexity: what is explained, what is compared, and what is called collapsed."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sparsebench import report
from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.report import build, words
from sparsebench.report.lookup import query_named
from sparsebench.steps.prune.registry import BUILT_IN
from tests.report import calibrated
from tests.report.calibrated import TOKENS
from tests.report.reading import whole
from tests.report.test_report import tables

NAMES = ["random", "magnitude", "wanda", "ria", "sparsegpt", "alps"]
HEADINGS = ["Random", "Magnitude", "Wanda", "RIA", "SparseGPT", "ALPS"]


def prose(text: str) -> str:
    """The page without its queries."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def written(tmp_path: Path, *records: list[dict[str, Any]]) -> str:
    """The report on these records."""
    ledger = tmp_path / "some.duckdb"
    for some in records:
        Ledger(ledger).ingest(some)
    return whole(build(ledger, tmp_path / "report.md", tmp_path / "figures"))


def test_every_built_in_method_is_explained(calibrated_report: str) -> None:
    section = calibrated_report.split("## 6.")[1].split("## 7.")[0]
    assert [method.name for method in BUILT_IN] == [*NAMES, "mask", "gradual", "elsa"]  # of which this ledger has none
    pages = Path(report.__file__).parent / "templates" / "methods"
    assert all((pages / f"{method.name}.md.j2").is_file() for method in BUILT_IN)
    found = re.findall(r"^### (.+)$", section, re.MULTILINE)
    assert found[:6] == HEADINGS
    assert found[6:] == ["How much each block loses: OWL", "One matrix, three methods"]
    for part in re.split(r"^### ", section, flags=re.MULTILINE)[1:8]:
        assert "$" in part, part
    assert "### Calibration: whose inputs a method sees" in calibrated_report
    assert "not installed here" not in section


def test_how_a_method_was_applied_is_told(calibrated_report: str) -> None:
    told = re.findall(r"^- \w+: (.+)\.$", calibrated_report.split("### Settings of the methods")[1], re.MULTILINE)
    assert told[2] == "row at 50%, 90%; row at 50% (dense inputs); row at 50%, 90% (owl); 2:4"
    assert told[4] == "layer at 50%, 90%; layer 4x4 at 50%, 90%"


def test_the_calibration_text_is_stated(calibrated_ledger: Path, calibrated_report: str) -> None:
    (text,) = query.run(calibrated_ledger, "SELECT DISTINCT calibration FROM scores WHERE calibration <> ''").rows[0]
    assert text.endswith(" seed 0")
    table = next(found for found in tables(calibrated_report) if found[0][0] == "text")
    assert table[2] == [
        "1", "`boolq passage 8×64`", "smol", "512", "abababab", "0", "alps, ria, sparsegpt, wanda, wanda+owl",
        "pruned, dense",
    ]  # fmt: skip
    assert f"- Text 1 is `{text.removesuffix(' seed 0')}`." in calibrated_report
    assert "one calibration text (section 6)" in calibrated_report
    assert ["damping raised to 0.1", "smol", "sparsegpt", "4"] in [
        row for table in tables(calibrated_report) for row in table
    ]


def test_a_perplexity_above_ten_thousand_is_collapsed_and_never_merely_worse(
    calibrated_ledger: Path, calibrated_report: str
) -> None:
    asked = query.run(calibrated_ledger, "SELECT score, verdict FROM results WHERE collapsed ORDER BY score").rows
    assert [f"{score:.1e}" for score, _ in asked] == ["1.2e+05", "2.4e+05", "2.2e+06"]
    assert {verdict for _, verdict in asked} == {"collapsed"}
    scores = "1.2e5|2.4e5|2.2e6"
    lines = [line for line in prose(calibrated_report).splitlines() if re.search(scores, line)]
    assert len(lines) >= 4
    for line in lines:
        assert len(re.findall(rf"collapsed \(({scores})\)", line)) == len(re.findall(scores, line))
        assert "worse" not in line
        assert "↓" not in line.split("collapsed", 1)[1]
    wide = next(table for table in tables(calibrated_report) if table[0][-1] == "verdict" and "times dense" in table[0])
    assert {row[-1] for row in wide[2:] if row[0] == "random/layer"} == {"collapsed"}
    assert ["magnitude/layer", "90%", "collapsed (2.4e5)", "–", "–", "–", "collapsed"] in wide
    assert not re.search(r"\d{6,}\.\d|e\+\d", prose(calibrated_report.split("## 9.")[0]))


def test_less_is_better_windows_are_counted_and_there_is_no_chance_and_nothing_retained(calibrated_report: str) -> None:
    part = calibrated_report.split("### smol on perplexity")[1].split("### smol on piqa")[0]
    assert "all 24 windows" in part and "24,552 tokens" in part
    assert "chance" not in prose(part)
    assert "retained" not in prose(part)
    assert "documents" not in prose(part)
    row = next(row for table in tables(part) for row in table if row[:2] == ["sparsegpt/layer", "50%"])
    assert row[4] == "×1.23" and float(row[5].rstrip("%")) > 0 and row[6:] == ["worse"]
    assert row[3].startswith("+5.")


def test_what_falls_first_is_told(calibrated_report: str) -> None:
    assert "magnitude/layer from 90%, random/layer from 50%" in calibrated_report
    fallen = next(table for table in tables(calibrated_report) if "of these end at chance or collapsed" in table[0])
    # Random masks, which fall at 50%, are left out.
    assert next(row for row in fallen if row[1] == "perplexity")[3:] == ["7", "90%", "1", "90%", "90%"]
    quality = calibrated_report.split("## 7.")[1].split("## 8.")[0]
    assert "smol (dense 25), alps/layer at 50% (30.16" in quality
    assert "on perplexity, which does not notice" not in calibrated_report


def test_methods_are_compared_window_by_window(calibrated_ledger: Path) -> None:
    """Against the slow way: the ratio of the two perplexities, and its spread over windows."""
    rows = query.run(calibrated_ledger, query_named("comparison")).dicts()
    asked = """
        SELECT method || '/' || granularity, list(value ORDER BY position)
        FROM scores
        JOIN base.outcomes USING (record_id)
        WHERE task = 'perplexity' AND pattern = 'unstructured' AND sparsity = 0.9
        GROUP BY ALL"""
    values = {label: np.array(nats) / TOKENS for label, nats in query.run(calibrated_ledger, asked).rows}
    # A pattern that only one method has is no contest, and equal sparsity does not mix patterns.
    assert {row["pattern"] for row in rows} == {"unstructured"}
    at = {row["label"]: row for row in rows if row["sparsity"] == 0.9}
    assert [label for label, row in at.items() if row["best"]] == ["alps/layer"]
    assert {label for label, row in at.items() if row["collapsed"]} == {"magnitude/layer", "random/layer"}
    for label in ("sparsegpt/layer", "wanda/row", "ria/layer", "wanda+owl/row"):
        shift = values[label] - values["alps/layer"]
        half = stats.t.ppf(0.975, len(shift) - 1) * shift.std(ddof=1) / math.sqrt(len(shift))
        assert at[label]["times"] == pytest.approx(math.exp(shift.mean()))
        assert at[label]["times_low"] == pytest.approx(math.exp(shift.mean() - half), rel=1e-3)
        assert at[label]["times_high"] == pytest.approx(math.exp(shift.mean() + half), rel=1e-3)
        assert not at[label]["tied"]
    assert at["magnitude/layer"]["times"] is None


def test_which_method(calibrated_report: str) -> None:
    part = calibrated_report.split("### Methods at equal sparsity")[1].split("### smol on perplexity")[0]
    matrix = tables(part)[0]
    assert matrix[0] == ["method", "50%", "90%"]
    assert matrix[2] == ["alps/layer", "**30.16**", "**864**"]
    assert matrix[-1] == ["wanda/row", "33.12", "5,081"], "collapsed ones are shown too"


def test_a_method_that_cannot_be_told_from_the_lowest_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(calibrated.LOSS, "ria", calibrated.LOSS["alps"])
    some = [{"prune": name, "sparsity": [0.5]} for name in ("alps", "ria", "wanda")]
    text = written(tmp_path, calibrated.sample(variants=some))
    part = text.split("### Methods at equal sparsity")[1].split("### smol on perplexity")[0]
    lowest, alike, behind = tables(part)[0][2:]
    assert re.fullmatch(r"\*\*30\.\d\d\*\*", lowest[1]) and re.fullmatch(r"30\.\d\d ≈", alike[1])
    assert {lowest[0], alike[0]} == {"alps/layer", "ria/layer"}
    assert behind[0] == "wanda/row" and "≈" not in behind[1]


def test_patterns_and_blocks_stand_beside_their_own_method_without_one(calibrated_report: str) -> None:
    found = next(table for table in tables(calibrated_report) if "with the pattern" in table[0])
    rows = {tuple(row[2:4]): row[4:] for row in found[2:] if row[1] == "perplexity"}
    assert (len(rows), len(found) - 2) == (3, 6)
    block, free, granularity, _ = rows["sparsegpt/layer 4x4", "90%"]
    assert (block.split(" [")[0], free.split(" [")[0], granularity) == ("5,390", "1,161", "layer")
    block, free, granularity, dense = rows["wanda 2:4", "50%"]
    assert (block.split(" [")[0], free.split(" [")[0], granularity, dense) == ("37.06", "33.12", "row", "25.00")


def test_what_an_ingredient_is_worth(calibrated_ledger: Path, calibrated_report: str) -> None:
    """Each pair that is shown differs in that one ingredient, and holds the two variants' own scores."""
    scores = {
        (row["task"], row["label"], row["sparsity"]): row["score"]
        for row in query.run(calibrated_ledger, query_named("scores")).dicts()
    }
    rows = query.run(calibrated_ledger, query_named("contrasts")).dicts()
    pairs = {(row["ingredient"], row["label"], row["after_label"]) for row in rows}
    assert {
        ("inputs", "magnitude/layer", "wanda/row"),
        ("update", "wanda/row", "sparsegpt/layer"),
        ("allocation", "wanda/row", "wanda+owl/row"),
        ("propagation", "wanda/row", "wanda/row"),
    } <= pairs
    for row in rows:
        dense = ", dense inputs" if row["ingredient"] == "propagation" else ""
        assert row["before"] == scores[row["task"], row["label"] + dense, row["sparsity"]]
        assert row["after"] == scores[row["task"], row["after_label"], row["sparsity"]]
        more = np.sign(row["after"] - row["before"]) * (-1 if row["task"] == "perplexity" else 1)
        assert row["lead"] == more * row["sound"]
        if row["task"] == "perplexity":
            assert row["sound"] == (min(row["after"], row["before"]) <= 1e4)
    name = "perplexity: magnitude/layer → wanda/row"
    shown = next(row for table in tables(calibrated_report) for row in table if name in row[0])
    at = {"ingredient": "inputs", "sparsity": 0.5, "task": "perplexity"}
    known = next(row for row in rows if at.items() <= row.items())
    assert shown[1] == f"{words.perplexity(known['before'])} → {words.perplexity(known['after'])}"
