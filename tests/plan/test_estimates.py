"""What a plan takes making, mixtures of experts and GPUs' memory to cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import devices, environment
from sparsebench.manifest.schema import Manifest, ManifestModel
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import ModelSize, calibrating, comparing, scoring, timing, training
from sparsebench.plan.expand import Plan, expand
from sparsebench.plan.jobs import jobs, remaking
from sparsebench.plan.resources import crowded, job_bytes
from sparsebench.plan.sizes import model_size
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import single

SIZE = ModelSize(10**8, 2 * 10**8)
OLMOE = {
    "model_type": "olmoe", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
    "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8, "vocab_size": 50304,
    "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies every precision, whatever this one is."""
    monkeypatch.setattr(environment, "emulated", lambda dtype: False)


def planned(**changes: Any) -> Plan:
    content = {"version": 1, "models": [{"name": "m", "source": "path:m", "family": "decoder", "dtype": "bfloat16"}]}
    return expand(Manifest.model_validate(content | changes), "test", {"m": "r"})


def read(*steps: Step, size: ModelSize = SIZE, family: str = "decoder", length: int | None = 512) -> float:
    """Seconds of a pass over text that makes a version by each of ``steps``, behind a pruning."""
    before = single("prune", "wanda", sparsity=0.5, propagate="dense")
    made = [
        Variant(str(place), "m", family, "path:m", "r", "real", "bfloat16", steps=(before, step))
        for place, step in enumerate(steps)
    ]
    cells = (Cell(one.id, "make", one, {"samples": 128, "length": length}) for one in made)
    return calibrating(Job("a", "make", tuple(cells), tuple(made)), size)


def test_text_is_no_longer_than_a_model_reads() -> None:
    wanda = single("prune", "wanda", sparsity=0.5)
    short, long = ModelSize(10**8, 2 * 10**8, longest=1024), ModelSize(10**8, 2 * 10**8, longest=32768)
    assert read(wanda, length=None) == read(wanda, length=2048) == read(wanda, size=long, length=None)
    assert read(wanda, size=short, length=None) == read(wanda, length=1024)
    padded = read(wanda, family="encoder", length=None)
    assert padded == read(wanda, family="encoder", length=512) < 0.7 * read(wanda, length=512)
    assert read(wanda, family="encoder", length=130) == read(wanda, length=130) < padded
    config = {"model_type": "gpt2", "n_positions": 1024}
    model = ManifestModel(name="m", source="path:m", family="decoder")
    assert model_size(model, config, Path("absent")).longest == 1024


def test_one_pass_of_text_serves_all_versions_of_a_sweep() -> None:
    def growth(verb: str, name: str, key: str, **more: Any) -> float:
        one, four = (
            read(*(single(verb, name, **{key: 0.2 * (1 + place)}, **more) for place in range(many))) for many in (1, 4)
        )
        return four / one

    assert growth("skip", "teal", "share") < 4 / 3
    assert growth("moefy", "cmoe", "active") < 4 / 3
    assert growth("prune", "wanda", "sparsity", propagate="dense") < 4 / 3
    assert growth("prune", "wanda", "sparsity") == pytest.approx(4)
    one, other = (single("quantize", name, rounding="gptq") for name in ("int8", "int4"))
    assert read(one, other) == pytest.approx(2 * read(one)), "what the step before shared is not its own"
    forward = 128 * 512 * 2 * SIZE.parameters / 200e9
    assert read(single("skip", "teal", share=0.4)) == pytest.approx(forward, rel=0.1), "it gathers no second moments"


def test_a_variant_that_is_made_again_takes_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(
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
    for cost in (training, calibrating):
        taken = [cost(job, SIZE) for job in first]
        assert any(taken) and [cost(job, SIZE) for job in again] == taken
        assert not any(cost(job, SIZE) for job in unpacked)
    made = [variant for variant in plan.variants.values() if not variant.is_dense]
    damaged = remaking(plan, made, lambda variant: variant.is_dense)
    assert sum(training(job, SIZE) for job in damaged) == sum(training(job, SIZE) for job in first)
    monkeypatch.setattr(environment, "arithmetic", lambda *given: "float32")
    needed = [[job_bytes(job, SIZE) for job in found] for found in (first, again)]
    assert needed[0] == needed[1]
    assert {job_bytes(job, SIZE) for job in unpacked} == {min(needed[0])} != {max(needed[0])}


def test_a_token_meets_the_experts_that_it_chooses() -> None:
    model = ManifestModel(name="m", source="path:m", family="decoder", dtype="bfloat16")
    size = model_size(model, OLMOE, Path("absent"))
    assert size.parameters == pytest.approx(6.9e9, rel=0.02) and size.bytes == 2 * size.parameters
    assert size.active == pytest.approx(1.3e9, rel=0.05)
    assert size.longest == 4096
    mixtral = {**OLMOE, "model_type": "mixtral", "num_local_experts": 8, "num_experts": None, "num_experts_per_tok": 2}
    found = model_size(model, mixtral, Path("absent"))
    assert found.active / found.parameters == pytest.approx(0.52, abs=0.05)
    assert model_size(model, {**OLMOE, "num_experts": 1}, Path("absent")).active == 0
    whole = ModelSize(size.parameters, size.bytes)
    share = size.active / size.parameters
    loads = [{"batch": batch, "prompt": 1, "generate": 1000} for batch in (1, 8)]
    plan = planned(
        variants=[{"recover": "finetune", "tokens": 10_000_000}], benchmarks={"decoder": [{"task": "piqa"}]},
        outputs={"samples": 10**4}, runtime={"workloads": loads, "processes": 1},
    )  # fmt: skip
    by_stage = {cell.stage: cell for cell in plan.cells}
    score, compare = by_stage["benchmarks"], by_stage["outputs"]
    assert scoring(score, size) == pytest.approx(share * scoring(score, whole))
    assert comparing(compare, size) < 2 * share * comparing(compare, whole)
    (job,) = [job for job in jobs(plan, plan.cells, lambda _: False) if job.kind == "make"]
    assert training(job, size) == pytest.approx(share * training(job, whole))
    wanda = single("prune", "wanda", sparsity=0.5)
    assert read(wanda, size=size) < 2 * share * read(wanda, size=whole)
    few, many = (cell for cell in plan.cells if cell.stage == "latency" and cell.variant.is_dense)
    assert timing(few, size) < 0.5 * timing(few, whole)
    assert timing(many, size) > 0.5 * timing(many, whole), "a batch's tokens choose experts of their own"
    assert job_bytes(job, size) == job_bytes(job, whole)


def test_a_gpu_that_is_too_small_is_known_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(
        variants=[{"prune": "magnitude", "sparsity": 0.5}], benchmarks={"decoder": [{"task": "piqa"}]},
        runtime={"engines": ["deepspeed", "deepspeed-zero3"], "ranks": [1, 2]},
    )  # fmt: skip
    monkeypatch.setattr(environment, "memory", lambda: (2**40, 2**40))
    work = jobs(plan, plan.cells, lambda _: True)

    def short(free: int | None, found: list[Job], device: str = "cuda") -> list[tuple[bool, int, bool]]:
        gpus = (devices.Gpu(0, "a", free=free), devices.Gpu(1, "a", free=free)) if device == "cuda" else ()
        monkeypatch.setattr(devices, "chosen", lambda _: gpus)
        ready: Any = SimpleNamespace(device=device, sizes={"m": ModelSize(10**10, 2 * 10**10, device=device)})
        return [(one.alone, one.needed, one.gpu) for one in crowded(ready, found)]

    def of(engine: str, ranks: int) -> list[Job]:
        return [
            job
            for job in work
            if job.kind == "latency"
            and (job.cells[0].settings["engine"], job.cells[0].settings["ranks"]) == (engine, ranks)
        ]

    scores = [job for job in work if job.kind == "benchmarks"]
    assert short(30 * 10**9, scores) == [] == short(None, scores)
    assert short(25 * 10**9, scores) == [(True, 26 * 10**9, True)]
    assert short(25 * 10**9, scores, "cpu") == []
    assert short(30 * 10**9, of("deepspeed", 1)) == [(False, 44 * 10**9, True)], "the pair is timed one by one"
    assert short(20 * 10**9, of("deepspeed", 1)) == [(True, 24 * 10**9, True)]
    assert short(30 * 10**9, of("deepspeed", 2)) == [], "two GPUs have half of it each"
    assert of("deepspeed-zero3", 1) and short(10**9, of("deepspeed-zero3", 1)) == []
    assert short(10**9, [job for job in work if job.kind == "assess"]) == [], "it is done on the CPU"
    monkeypatch.setattr(environment, "memory", lambda: (2**40, 10**10))
    assert {one[2] for one in short(10**10, scores)} == {False, True}
