"""What jobs take: seconds, side by side as the scheduler has room, and for how long one may be silent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import environment, sources
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import ModelSize, calibrating
from sparsebench.plan.resources import (
    PACKED_SHARE,
    job_bytes,
    job_seconds,
    learned,
    needs,
    shares,
    silence_seconds,
    total_seconds,
)
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import kinds, single


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
    before, after = (total_seconds(shares([*found, other], sizes, 1, known)) for known in (None, pace))
    assert after == {"benchmarks": pytest.approx(3 * before["benchmarks"]), "assess": before["assess"]}


def test_a_reconstruction_is_estimated_by_the_tokens_that_it_reads() -> None:
    size, read = ModelSize(10**8, 2 * 10**8, blocks=30), {"samples": 16, "length": 512}

    def seconds(**more: int) -> float:
        step = single("recover", "reconstruct", **more)
        made = Variant("v", "m", "decoder", "path:m", "r", "real", "float32", steps=(step,))
        return calibrating(Job("a", "make", (Cell("a", "make", made, read),), (made,)), size)

    assert seconds() == seconds(tokens=8192) == seconds(tokens=10**6)
    assert seconds() - seconds(tokens=4096) == pytest.approx(2 * (seconds(tokens=4096) - seconds(tokens=2048)))
    assert seconds(tokens=2048) < seconds() / 2


def test_what_reads_the_whole_model_takes_its_memory_and_a_pass_for_each_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLEB tries each block that is left, from there on; Taylor goes there and back; others look at the text once."""
    passes = kinds()["shrink"].passes
    steps = {
        single("shrink", "sleb", blocks=8): 8 + 212 / 2,
        single("shrink", "influence", blocks=8): 1,
        single("shrink", "taylor", keep=0.5, iterations=4): 8,
        single("shrink", "activation", keep=0.5, compensation="least_squares"): 2,
    }
    assert {step: passes(step, 30) for step in steps} == steps
    monkeypatch.setattr(environment, "arithmetic", lambda *given: "float32")
    size = ModelSize(10**8, 2 * 10**8, blocks=30)
    read = {"samples": 16, "length": 512}
    jobs = []
    for step in steps:
        made = Variant("v", "m", "decoder", "path:m", "r", "real", "bfloat16", steps=(step,))
        jobs.append(Job("a", "make", (Cell("a", "make", made, read),), (made,)))
    sleb, influence, taylor, activation = (job_seconds(job, {"m": size}) for job in jobs)
    assert sleb > 20 * influence and taylor > influence and activation > influence
    needed = [job_bytes(job, size) for job in jobs]
    assert needed[0] == needed[2] == needed[1] + 4 * 10**8 == needed[3] + 4 * 10**8


def test_what_rounding_took_says_nothing_of_a_training() -> None:
    def made(*step: str) -> Job:
        variant = Variant("v", "m", "decoder", "path:m", "r", "real", "float32", steps=(single(*step),))
        return Job("a", "make", (Cell("a", "make", variant, {}),), (variant,))

    rounded, trained = made("quantize", "int8"), made("recover", "finetune")
    sizes = {"m": ModelSize(1_000_000, 4_000_000)}
    known = learned([rounded], sizes, {"a": 100 * job_seconds(rounded, sizes)})
    seconds = [total_seconds(shares([job], sizes, 1, known))["make"] for job in (rounded, trained)]
    assert seconds == [pytest.approx(100 * job_seconds(rounded, sizes)), job_seconds(trained, sizes)]


def test_what_a_run_fetches_is_the_texts_and_teachers_of_its_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"text": 1, "hf:a/own": 10, "hf:a/big": 100, "hf:a/more": 1000}
    monkeypatch.setattr(sources, "parse", lambda text: text)
    monkeypatch.setattr(sources, "size", lambda source, cache: names[source])
    plan = SimpleNamespace(calibration=SimpleNamespace(source="text"), data={})
    ready: Any = SimpleNamespace(
        sizes={"m": ModelSize(10**6, 10**6)}, device="cpu", keep="none", request=SimpleNamespace(jobs=1),
        has=lambda model: True, plan=plan, cache=None,
    )  # fmt: skip

    def fetched(step: Step, stage: str = "make") -> int:
        made = Variant("v", "m", "decoder", "path:m", "r", "real", "float32", steps=(step,))
        return needs(ready, [Job("a", stage, (Cell("a", stage, made, {}),), (made,))]).fetch

    pruned = single("prune", "magnitude", sparsity=0.5)
    assert [fetched(pruned), fetched(pruned, "outputs"), fetched(single("recover", "finetune"))] == [0, 1, 0]
    teachers = ["dense", "hf:a/big#content=1", "hf:a/more#content=2"]
    assert fetched(single("recover", "distill", source="hf:a/own#content=0", teacher=[teachers])) == 1110


def test_the_disk_of_variants_is_what_their_steps_leave_of_the_model() -> None:
    def disk(keep: str, *steps: Step) -> int:
        made = Variant("v", "m", "decoder", "path:m", "r", "real", "float32", steps=steps)
        ready: Any = SimpleNamespace(
            sizes={"m": ModelSize(10**9, 10**9)}, device="cpu", keep=keep, request=SimpleNamespace(jobs=1),
            has=lambda model: True,
        )  # fmt: skip
        return needs(ready, [Job("a", "make", (), (made,))]).disk

    pruned, halved, rounded = (
        single("prune", "magnitude", sparsity=0.5), single("shrink", "activation", keep=0.5), single("quantize", "int4"),
    )  # fmt: skip
    for keep in ("none", "dense"):
        assert [disk(keep, pruned), disk(keep, halved), disk(keep, halved, rounded)] == [10**9, 5 * 10**8, 175 * 10**6]
    assert disk("packed", halved) == 5 * 10**8 + int(5 * 10**8 * PACKED_SHARE)
