"""For how long a job may be silent."""

from __future__ import annotations

from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.resources import job_seconds, silence_seconds


def test_a_job_may_be_silent_for_an_hour_or_for_ten_times_its_estimate() -> None:
    model = Variant("v", "m", "decoder", "path:m", "r", "real", "float32")
    job = Job("a", "benchmarks", (Cell("a", "benchmarks", model, {"task": "piqa"}),))
    small, large = ({"m": ModelSize(count, 4 * count)} for count in (1_000_000, 10_000_000_000))
    assert 10 * job_seconds(job, small) < 3600 == silence_seconds(job, small)
    assert silence_seconds(job, large) == 10 * job_seconds(job, large) > 3600
