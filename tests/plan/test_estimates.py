"""What a plan takes jobs to cost, in time, memory, disk and network, and how finished jobs correct it."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import devices, sources
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import (
    DAMPING_SECONDS,
    Estimate,
    ModelSize,
    job_seconds,
    silence_seconds,
    tokens,
    wall_seconds,
)
from sparsebench.plan.jobs import jobs, remaking_jobs
from sparsebench.plan.resources import PACKED_SHARE, job_bytes, memory_shortages, needs
from sparsebench.plan.stages import READINGS
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import single
from tests.plan.planning import bare

SIZE = ModelSize(10**8, 2 * 10**8)
MODEL = Variant("v", "m", "decoder", "path:m", "r", "real", "bfloat16")


def making(verb: str, name: str, text: int = 8192, family: str = "decoder", **settings: Any) -> Job:
    """The job of one variant, with a calibration text of so many tokens."""
    made = replace(MODEL, family=family, steps=(single(verb, name, **settings),))
    read = {"samples": 16, "length": text // 16} if text else {}
    return Job("a", "make", (Cell("a", "make", made, read),), (made,))


def work(job: Job) -> float:
    """The tokens that go through the model for a job's steps."""
    return sum(map(tokens, job.making_cells))


def scored(family: str = "decoder", **task: Any) -> float:
    """The tokens of scoring one model in a task."""
    model = {"name": "m", "source": "path:m", "family": family, "dtype": "bfloat16"}
    plan = bare(models=[model], benchmarks={family: [task]})
    return next(tokens(cell) for cell in plan.cells if cell.stage == "benchmarks")


def test_what_a_step_reads_of_the_text_and_what_it_trains_on_is_its_work() -> None:
    assert work(making("prune", "magnitude", sparsity=0.5, text=0)) == 0
    wanda = work(making("prune", "wanda", sparsity=0.5))
    assert wanda == 2 * 8192 == work(making("quantize", "int8", rounding="gptq"))
    assert work(making("prune", "wanda", sparsity=0.5, text=16 * 2048, family="encoder")) == 2 * 16 * 512
    assert work(making("shrink", "sleb", blocks=8)) == 8 * work(making("shrink", "sleb", blocks=1)) > 20 * wanda
    assert work(making("shrink", "taylor", keep=0.5, iterations=4)) == 4 * wanda
    for verb, name, more in (("recover", "finetune", {}), ("shrink", "gates", {"keep": 0.5})):
        assert work(making(verb, name, tokens=1_000_000, text=0, **more)) == 3_000_000
    reads = {count: work(making("recover", "reconstruct", tokens=count)) for count in (2048, 4096, 8192, 10**6)}
    assert reads[10**6] == reads[8192] == 2 * reads[4096] == 4 * reads[2048] > wanda


def test_more_parameters_documents_or_tokens_take_as_much_longer() -> None:
    job = making("prune", "wanda", sparsity=0.5)
    start = job_seconds(job, {"m": ModelSize(0, 0)})
    small, large = (job_seconds(job, {"m": ModelSize(count, 2 * count)}) - start for count in (10**8, 10**9))
    assert large == pytest.approx(10 * small) and start > 0
    assert scored(task="mmlu", num_fewshot=5) == 6 * scored(task="mmlu")
    assert scored("encoder-decoder", task="mmlu") == READINGS * scored(task="mmlu")
    assert scored(task="piqa", limit=100) == pytest.approx(100 / 1838 * scored(task="piqa"))

    def timed(**changes: int) -> float:
        load = {"batch": 1, "prompt": 128, "generate": 16} | changes
        runtime = {name: load.pop(name) for name in ("processes", "samples") if name in load}
        plan = bare(runtime={"workloads": [load], "processes": 1, "samples": 24} | runtime)
        return next(tokens(cell) for cell in plan.cells if cell.stage == "latency")

    assert timed(batch=4) == 4 * timed() == timed(processes=4, samples=96)
    # Processes share the samples, and each of them warms up; a sample costs the same in any.
    assert timed() < timed(processes=4) < 4 * timed()
    assert timed(samples=48) - timed() == timed(processes=4, samples=48) - timed(processes=4) > 0
    assert timed(generate=17) - timed() > timed(prompt=129) - timed() > 0


def test_a_gpu_is_faster_where_a_job_calculates_on_it() -> None:
    for job, faster in (
        (making("recover", "finetune", text=0), True),
        (making("prune", "wanda", sparsity=0.5, text=10**6), True),
        (making("prune", "magnitude", sparsity=0.5, text=0), False),
    ):
        assert (job_seconds(job, {"m": SIZE}) > 10 * job_seconds(job, {"m": SIZE}, "cuda")) == faster


def test_what_finished_jobs_took_corrects_those_of_their_pace() -> None:
    jobs = [Job(name, "benchmarks", (Cell(name, "benchmarks", MODEL, {"task": "piqa"}),)) for name in "abc"]
    sizes = {"m": SIZE}
    estimate, expected = Estimate(sizes), job_seconds(jobs[0], sizes)
    assert estimate.seconds(jobs[0]) == expected
    for job in jobs:
        estimate.learn(job, 4 * expected)
    ratio = (12 * expected + DAMPING_SECONDS) / (3 * expected + DAMPING_SECONDS)
    assert estimate.seconds(jobs[0]) == pytest.approx(ratio * expected)
    assert 3 < ratio < 4, "so little says that the first jobs may have fetched something"
    rounded, trained = making("quantize", "int8", text=0), making("recover", "finetune", text=0)
    estimate.learn(rounded, 1000.0)
    assert wall_seconds([rounded, trained], estimate, 2) == {"make": sum(map(estimate.seconds, (rounded, trained))) / 2}
    assert estimate.seconds(trained) == job_seconds(trained, sizes), "a rounding says nothing of a training"


def test_a_job_may_be_silent_for_an_hour_or_for_ten_times_its_estimate() -> None:
    job = making("recover", "finetune", text=0)
    small, large = ({"m": ModelSize(count, 4 * count)} for count in (1_000_000, 10_000_000_000))
    assert 10 * job_seconds(job, small) < 3600 == silence_seconds(job, small)
    assert silence_seconds(job, large) == 10 * job_seconds(job, large) > 3600


def test_a_variant_that_is_made_again_takes_what_it_took() -> None:
    plan = bare(
        variants=[
            {"recover": "finetune", "tokens": 10_000_000}, {"prune": "wanda", "sparsity": [0.5, 0.6]},
            {"shrink": "sleb", "blocks": 2},
        ],
        benchmarks={"decoder": [{"task": "piqa"}]},
    )  # fmt: skip
    left = [cell for cell in plan.cells if cell.stage == "benchmarks"]
    never, always = (lambda _: False), (lambda _: True)
    first, again, unpacked = (
        [job for job in jobs(plan, cells, lambda _: False, packed) if job.kind == "make"]
        for cells, packed in ((plan.cells, never), (left, never), (left, always))
    )
    assert not any(job.cells for job in again) and [job.id for job in again] == [job.id for job in first]
    sizes = {"m": SIZE}
    taken = [job_seconds(job, sizes) for job in first]
    assert [job_seconds(job, sizes) for job in again] == taken
    assert max(job_seconds(job, sizes) for job in unpacked) < min(taken)
    made = [variant for variant in plan.variants.values() if not variant.is_dense]
    damaged = remaking_jobs(plan, made, lambda variant: variant.is_dense)
    assert sum(map(work, damaged)) == sum(map(work, first)) > 0
    needed = [[job_bytes(job, SIZE) for job in found] for found in (first, again)]
    assert needed[0] == needed[1]
    assert {job_bytes(job, SIZE) for job in unpacked} == {min(needed[0])} != {max(needed[0])}


def test_models_whose_outputs_are_compared_take_their_bytes_as_they_run() -> None:
    taken = []
    for dtype in ("bfloat16", "float32"):
        model = {"name": "m", "source": "path:m", "family": "decoder", "dtype": "bfloat16", "compute_dtype": dtype}
        plan = bare(models=[model], variants=[{"prune": "magnitude", "sparsity": 0.5}], outputs={})
        (job,) = (job for job in jobs(plan, plan.cells, lambda _: True) if job.kind == "outputs")
        taken.append(job_bytes(job, SIZE))
    assert taken[0] < taken[1]


def test_a_gpu_that_is_too_small_is_known_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, free_memory: Callable[[int], None]
) -> None:
    plan = bare(
        variants=[{"prune": "magnitude", "sparsity": 0.5}], benchmarks={"decoder": [{"task": "piqa"}]},
        runtime={"engines": ["deepspeed", "deepspeed-zero3"], "ranks": [1, 2]},
    )  # fmt: skip
    free_memory(2**40)
    work = jobs(plan, plan.cells, lambda _: True)

    def short(free: int | None, found: list[Job], device: str = "cuda") -> list[tuple[bool, int, bool]]:
        gpus = (devices.Gpu(0, "a", free=free), devices.Gpu(1, "a", free=free)) if device == "cuda" else ()
        monkeypatch.setattr(devices, "selected_gpus", lambda _: gpus)
        ready: Any = SimpleNamespace(device=device, sizes={"m": ModelSize(10**10, 2 * 10**10)})
        return [(one.alone, one.needed, one.gpu) for one in memory_shortages(ready, found)]

    def of(engine: str, ranks: int) -> list[Job]:
        timed = [(job.cells[0].settings, job) for job in work if job.kind == "latency"]
        return [job for asked, job in timed if (asked["engine"], asked["ranks"]) == (engine, ranks)]

    scores = [job for job in work if job.kind == "benchmarks"]
    assert short(30 * 10**9, scores) == [] == short(None, scores)
    assert short(25 * 10**9, scores) == [(True, 26 * 10**9, True)]
    assert short(25 * 10**9, scores, "cpu") == []
    assert short(30 * 10**9, of("deepspeed", 1)) == [(False, 44 * 10**9, True)], "the pair is timed one by one"
    assert short(20 * 10**9, of("deepspeed", 1)) == [(True, 24 * 10**9, True)]
    assert short(30 * 10**9, of("deepspeed", 2)) == [], "two GPUs have half of it each"
    assert of("deepspeed-zero3", 1) and short(10**9, of("deepspeed-zero3", 1)) == []
    assert short(10**9, [job for job in work if job.kind == "assess"]) == [], "it is done on the CPU"
    free_memory(10**10)
    assert {one[2] for one in short(10**10, scores)} == {False, True}


def test_what_runs_or_trains_the_whole_model_takes_its_memory() -> None:
    def needed(step: Step) -> int:
        made = replace(MODEL, steps=(step,))
        return job_bytes(Job("a", "make", (Cell("a", "make", made, {}),), (made,)), SIZE)

    blockwise = needed(single("shrink", "influence", blocks=8))
    assert needed(single("shrink", "activation", keep=0.5, compensation="least_squares")) == blockwise
    assert needed(single("shrink", "sleb", blocks=8)) == blockwise + 4 * 10**8
    assert needed(single("shrink", "taylor", keep=0.5, iterations=4)) == blockwise + 4 * 10**8
    assert needed(single("recover", "finetune")) == blockwise + 20 * 10**8, "with gradients and moments in float32"


def test_what_a_run_fetches_is_the_texts_and_teachers_of_its_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hf:a/text@1": 1, "hf:a/own@1": 10, "hf:a/big@1": 100, "hf:a/more@1": 1000}
    monkeypatch.setattr(sources, "size", lambda source, cache: sizes[source.text])
    plan = SimpleNamespace(calibration=SimpleNamespace(source="hf:a/text@1"), data={})
    ready: Any = SimpleNamespace(
        sizes={"m": ModelSize(10**6, 10**6)}, device="cpu", keep="none", request=SimpleNamespace(jobs=1),
        has=lambda model: True, plan=plan, cache=None,
    )  # fmt: skip

    def fetched(step: Step, stage: str = "make") -> int:
        made = replace(MODEL, dtype="float32", steps=(step,))
        return needs(ready, [Job("a", stage, (Cell("a", stage, made, {}),), (made,))]).fetch

    pruned = single("prune", "magnitude", sparsity=0.5)
    assert [fetched(pruned), fetched(pruned, "outputs"), fetched(single("recover", "finetune"))] == [0, 1, 0]
    teachers = ["dense", "hf:a/big@1#content=1", "hf:a/more@1#content=2"]
    assert fetched(single("recover", "distill", source="hf:a/own@1#content=0", teacher=[teachers])) == 1110


def test_the_disk_of_variants_is_that_of_as_many_models() -> None:
    def disk(keep: str, count: int) -> int:
        pruned = (single("prune", "magnitude", sparsity=0.5),)
        made = [replace(MODEL, id=str(n), dtype="float32", steps=pruned) for n in range(count)]
        ready: Any = SimpleNamespace(
            sizes={"m": ModelSize(10**9, 10**9)}, device="cpu", keep=keep, request=SimpleNamespace(jobs=1),
            has=lambda model: True,
        )  # fmt: skip
        return needs(ready, [Job("a", "make", (), tuple(made))]).disk

    assert disk("none", 3) == disk("dense", 3) == 3 * 10**9
    assert disk("packed", 2) == 2 * 10**9 + int(2 * 10**9 * PACKED_SHARE)
