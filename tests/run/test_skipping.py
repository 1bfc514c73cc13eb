"""Steps that leave weights unread, from manifest to ledger; and what may not follow them."""

from pathlib import Path

import pytest

from sparsebench import environment
from sparsebench.manifest.problems import ManifestError
from sparsebench.plan.preflight import PlanRequest, prepare
from tests.command import call
from tests.run.conftest import CALIBRATION, OWN, Experiment

REST = """\
variants:
  - {skip: teal, share: [0.3, 0.6]}
  - {moefy: cmoe, experts: 8, active: 0.5, router: learned}
  - - {prune: magnitude, sparsity: 0.5}
    - {skip: cats, share: 0.5}
structure: null
storage: {formats: [dense, packed], keep: packed}
runtime: {engines: [skip, sparse], workloads: {prompt: 8, generate: 4}, samples: 4, select: {skip: teal}}
"""


def written(experiment: Experiment, old: str = "", new: str = "") -> Path:
    return experiment.write(CALIBRATION + OWN + REST.replace(old, new))


@pytest.mark.parametrize(
    ("steps", "key", "said"),
    [
        ("moefy: kmeans, active: 0.5; recover: reconstruct", "", ""),
        ("skip: cats, share: 0.5; quantize: int8", "skip", "last step of its recipe"),
        ("skip: cats, share: 0.5; recover: reconstruct", "skip", "last step of its recipe"),
        ("moefy: kmeans, active: 0.5; quantize: int8", "moefy", "last step of its recipe"),
        ("moefy: kmeans, active: 0.5; recover: distill", "moefy", "last step of its recipe"),
        ("moefy: kmeans, active: 0.5; recover: reconstruct; quantize: int8", "moefy", "last step of its recipe"),
        (
            "moefy: kmeans, active: 0.5, router: [centroid, oracle]; recover: reconstruct",
            "router",
            "no step may follow",
        ),
        ("floor: heuristic; recover: reconstruct", "floor", "no step may follow"),
    ],
)
def test_blocks_of_grouped_neurons_may_be_recovered_and_nothing_else_follows(
    steps: str, key: str, said: str, experiment: Experiment
) -> None:
    lines = "\n".join(f"    - {{{step}}}" for step in steps.split("; "))
    path = written(experiment, "    - {skip: cats, share: 0.5}", lines)
    if not said:
        cells = prepare(PlanRequest(path, offline=True)).plan.cells
        assert any(cell.variant.recipe.endswith(", then reconstruct") for cell in cells)
        return
    with pytest.raises(ManifestError) as caught:
        prepare(PlanRequest(path, offline=True))
    (problem,) = caught.value.problems
    assert f"{key}: " in path.read_text().splitlines()[problem.line - 1] + problem.message and said in str(problem)


def test_metis_is_asked_for_by_name_and_refused_with_its_line_where_it_is_not_installed(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = "{moefy: coactivation, experts: 8, active: 0.5, partition: [balanced, metis], router: [oracle, centroid]}"
    path = written(experiment, "{moefy: cmoe, experts: 8, active: 0.5, router: learned}", entry)
    monkeypatch.setitem(environment.versions(), "pymetis", "2025.2.2")
    recipes = {cell.variant.recipe for cell in prepare(PlanRequest(path, offline=True)).plan.cells}
    assert len({recipe for recipe in recipes if recipe.startswith("coactivation/")}) == 4
    monkeypatch.setitem(environment.versions(), "pymetis", "absent")
    with pytest.raises(ManifestError, match="pymetis is not installed") as caught:
        prepare(PlanRequest(path, offline=True))
    (problem,) = caught.value.problems
    assert "partition: [balanced, metis]" in path.read_text().splitlines()[problem.line - 1]
    assert "pip install 'pymetis>=2025.2'" in problem.hint


@pytest.mark.long
def test_from_manifest_to_ledger(experiment: Experiment) -> None:
    done = call("run", written(experiment))
    rows = experiment.rows
    # The sparse engine would read everything, and says so; all else is done.
    left = rows("SELECT DISTINCT recipe, stage, status FROM cells WHERE status <> 'done' ORDER BY ALL")
    assert left == [
        (f"teal {share}% of inputs", stage, "unsupported") for share in (30, 60) for stage in ("latency", "memory")
    ], done.stderr
    scores = dict(rows("SELECT recipe, score FROM results WHERE task = 'own'"))
    assert len(scores) == len(set(scores.values())) == 5
    kernels = {
        str(kernel)
        for (kernel,) in rows("SELECT kernel FROM latency JOIN variants USING (variant_id) WHERE recipe LIKE 'teal%'")
    }
    assert kernels and all("skipping" in kernel and "threshold: 100%" not in kernel for kernel in kernels)
    notes = rows("SELECT note FROM variants WHERE recipe LIKE '%cmoe%' OR recipe LIKE '%cats%'")
    assert all("weights are read for" in str(note) for (note,) in notes) and len(notes) == 2
