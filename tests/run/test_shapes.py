"""Smaller shapes from manifest to report: what shrink, trim and a plugin's step make is run, counted and told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run.conftest import CALIBRATION, OWN, Experiment
from tests.steps.plugin_page import block, install
from tests.steps.trim.tiny import LEARNED, TEXT, llama

STORAGE = """\
storage: {formats: [dense], keep: none}
"""
SHAPES = """\
variants:
  - {shrink: l2, neurons: 24}
  - {trim: corpus}
  - - {shrink: last, blocks: 1}
    - {trim: corpus}
"""
PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "own-step.md").read_text(encoding="utf-8")
Call = Callable[..., subprocess.CompletedProcess[str]]


def reported(home: Path, variants: str, sparsebench: Call) -> tuple[dict[str, tuple[float, int]], str]:
    """After a run: by recipe the share of the parameters that went and the bytes of the file; and the report."""
    own = "\n\n".join(f"{text} {number}" for number in range(20) for text in LEARNED)
    experiment = Experiment(home, llama(home / "model"), "\n\n".join(TEXT * 20), own)
    done = sparsebench("run", experiment.write(CALIBRATION + OWN + STORAGE + variants))
    assert done.returncode == 0, done.stderr
    sql = "SELECT recipe, parameters_removed, bytes FROM variants JOIN sizes USING (variant_id) WHERE format = 'dense'"
    found = {str(recipe): (removed, size) for recipe, removed, size in experiment.rows(sql)}
    written = sparsebench("report", "--ledger", experiment.ledger, "--out", home / "report.md")
    assert written.returncode == 0, written.stderr
    pages = [(home / name).read_text(encoding="utf-8") for name in ("report.md", "report-results.md")]
    return found, "\n".join(pages)


@pytest.mark.long
def test_what_is_shrunk_and_trimmed_is_counted_and_reported(tmp_path: Path, sparsebench: Call) -> None:
    found, report = reported(tmp_path, SHAPES, sparsebench)
    dense = found.pop("dense")
    assert len(found) == 3
    for recipe, (removed, size) in found.items():
        assert 0 < removed < 1 and size < dense[1], recipe
        assert recipe in report
    both = next(recipe for recipe in found if ", then " in recipe)
    assert found[both][0] > max(
        removed for recipe, (removed, _) in found.items() if recipe != both and "l2" not in recipe
    )


@pytest.mark.long
def test_the_step_of_the_page_goes_from_manifest_to_report(
    tmp_path: Path, sparsebench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(PAGE, tmp_path, monkeypatch)
    sys.modules.pop("sparsebench_halve", None)
    known = [str(tmp_path / "site-packages"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, known)))
    found, report = reported(tmp_path, block(PAGE, "yaml"), sparsebench)
    dense = found.pop("dense")
    assert set(found) == {
        "depth", "depth first=1", "depth, then magnitude/layer 50%", "depth, then magnitude/layer 90%",
    }  # fmt: skip
    assert all(0 < removed < 0.5 and size < dense[1] for removed, size in found.values())
    rows = [line for line in report.splitlines() if line.startswith("| ") and "depth" in line]
    assert any("first=1" in row for row in rows), rows
    assert any("magnitude" in row and "after depth" in row for row in rows), rows
