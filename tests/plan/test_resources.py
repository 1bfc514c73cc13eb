"""For how long a job may be silent."""

from __future__ import annotations

import pytest

from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.resources import job_seconds, learned, silence_seconds, total_seconds


def test_a_job_may_be_silent_for_an_hour_or_for_ten_times_its_estimate() -> None:
    model = Variant("v", "m", "decoder", "path:m", "r", "real", "float32")
    job = Job("a", "benchmarks", (Cell("a", "benchmarks", model, {"task": "piqa"}),))
    small, large = ({"m": ModelSize(count, 4 * count)} for count in (1_000_000, 10_000_000_000))
    assert 10 * job_seconds(job, small) < 3600 == silence_seconds(job, small)
    assert silence_seconds(job, large) == 10 * job_seconds(job, large) > 3600


def test_what_finished_jobs_took_of_their_estimates_is_learned_by_kind() -> None:
    model = Variant("v", "m", "decoder", "path:m", "r", "real", "float32")
    sizes = {"m": ModelSize(1_000_000, 4_000_000)}
    found = [Job(name, "benchmarks", (Cell(name, "benchmarks", model, {"task": "piqa"}),)) for name in "abc"]
    expected = job_seconds(found[0], sizes)
    pace = learned(found, sizes, {"a": 3 * expected, "b": 2 * expected, "c": 100 * expected})
    assert pace == {"benchmarks": pytest.approx(3)}, "the median: one that was disturbed says nothing"
    other = Job("d", "assess", (Cell("d", "structure", model, {}),))
    before, after = (total_seconds([*found, other], sizes, 1, known) for known in (None, pace))
    assert after == {"benchmarks": pytest.approx(3 * before["benchmarks"]), "assess": before["assess"]}
