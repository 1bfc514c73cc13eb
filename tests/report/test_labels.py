"""One label stands for one calibration, and what zeros alone leave is what was measured."""

from pathlib import Path

import pytest

from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.report import build_brief
from sparsebench.report.build import REPORT_FOLDER
from tests.report import calibrated


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wanda with two texts, of which the second has a sparsity of its own; magnitude in two granularities; int8."""
    path = tmp_path_factory.mktemp("labels") / "labels.duckdb"
    more = [{"prune": "alps", "sparsity": [0.1, 0.6]}, {"quantize": "int8"}]
    Ledger(path).ingest(calibrated.sample(variants=[*calibrated.CALIBRATED["variants"], *more]))
    variants = [
        {"prune": "wanda", "sparsity": [0.5, 0.7]},
        {"prune": "magnitude", "sparsity": 0.5, "granularity": ["layer", "global"]},
    ]
    Ledger(path).ingest(calibrated.sample("other", variants=variants, calibration={"samples": 4, "length": 64}))
    return path


def test_a_recipe_s_words_name_what_is_not_usual(ledger: Path) -> None:
    words = {row[0] for row in query.run(ledger, "SELECT words FROM _recipes").rows}
    assert {word for word in words if word.startswith("wanda")} == {
        "wanda 50%", "wanda 90%", "wanda 50% (text 1d)", "wanda 50% (text 2)", "wanda 70% (text 2)",
        "wanda+owl 50%", "wanda+owl 90%", "wanda 2:4",
    }  # fmt: skip
    assert {"magnitude 50%", "magnitude/global 50%", "sparsegpt 50%", "sparsegpt 4x4 50%"} <= words


def test_a_figure_draws_another_calibration_where_it_has_sparsities_of_its_own(ledger: Path) -> None:
    rows = query.run(ledger, "FROM _pruned_curves WHERE scale = 'perplexity'").dicts()
    drawn = {(row["line"], row["sparsity"]) for row in rows if row["line"].startswith("wanda/row") and row["sparsity"]}
    assert {("wanda/row", 0.5), ("wanda/row", 0.9), ("wanda/row (text 2)", 0.7)} <= drawn
    assert not any("1d" in line for line, _ in drawn), "at 50% alone, where the usual calibration was measured"


def test_zeros_alone_are_measured_points(ledger: Path, tmp_path: Path) -> None:
    (row,) = query.run(ledger, (REPORT_FOLDER / "queries" / "zeros_alone.sql").read_text()).dicts()
    assert (row["words"], row["next_sparsity"]) == ("alps 10%", 0.5)
    out = tmp_path / "brief.md"
    build_brief(ledger, out, tmp_path / "figures")
    page = out.read_text()
    assert "alps 10% for" in page and f"50%: ×{row['next_ratio']:.2f})" in page
    assert "GGUF" not in page, "real weights came out of no file of four bits"
