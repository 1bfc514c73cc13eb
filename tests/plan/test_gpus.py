"""What a plan says where there are GPUs: which jobs have one each, for how long, and what cannot run on them.

The GPUs are those of a driver's tool that lists what is not there.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebench.cli.plan import announce, show
from sparsebench.plan.estimate import ModelSize, concurrent_jobs, job_seconds
from sparsebench.plan.jobs import jobs, runs_alone, uses_device
from sparsebench.run.select import decisions
from tests.gpus import H100, Driver
from tests.plan.planning import RANDOM, bare, written

SEVEN = ModelSize(6_740_000_000, 13_480_000_000)


def hours(text: str) -> float:
    """``2h05m``, ``3m`` or ``45s`` in hours."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    assert found and text
    whole, minutes, seconds = (int(one or 0) for one in found.groups())
    return whole + minutes / 60 + seconds / 3600


LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
SWEEP = """version: 1
models: [{name: large, source: path:large, family: decoder}]
variants: [{prune: magnitude, sparsity: [0.5, 0.9]}, {recover: finetune, source: path:text.txt}]
benchmarks: {decoder: [{task: piqa}]}
runtime: {engines: [hf, deepspeed]}
"""


def test_a_plan_says_how_long_each_kind_of_job_takes_side_by_side(
    driver: Driver, free_memory: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.lists([(f"GPU-{number}", H100, "80000") for number in range(8)])
    driver.seen_by_torch()
    free_memory(2**40)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(json.dumps(LLAMA_7B))
    (tmp_path / "text.txt").write_text("some words\n")
    ready = written(tmp_path, SWEEP, device="cuda", jobs=8)
    announce(ready, list(ready.plan.cells))
    told = " ".join(capsys.readouterr().err.split())
    assert "on 8 GPUs" in told and H100 in told
    said = {kind: hours(time) for kind, time in re.findall(r"(\w+) ((?:\d+[hms])+)", told)}
    wanted: dict[str, float] = {}
    for job in jobs(ready.plan, ready.plan.cells, lambda _: False):
        many = concurrent_jobs(job, slots=8, gpus=8)
        wanted[job.kind] = wanted.get(job.kind, 0.0) + job_seconds(job, ready.sizes, ready.device) / 3600 / many
    assert {kind: said[kind] for kind in wanted} == pytest.approx(wanted, abs=0.01, rel=0.02)
    assert re.search(r"shares of what is prunable: 9\d% of large", told)


MIXED = f"""\
{RANDOM}variants:
  - {{quantize: int8}}
runtime:
  engines: [hf, deepspeed]
  ranks: [1, 2]
"""


def test_what_gpus_cannot_do_is_said_at_its_line_and_never_made(
    driver: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.seen_by_torch()
    driver.lists([("GPU-a", H100, "80000")])
    skipping = MIXED.replace("quantize: int8", "prune: magnitude, sparsity: 0.5").replace("deepspeed", "skip")
    ready = written(tmp_path, skipping, device="cuda")
    refused = [cell.settings for cell in ready.plan.cells if cell.id in ready.refused]
    assert {one["engine"] for one in refused if one["ranks"] == 1} == {"skip"}
    assert "the skip engine runs on a CPU only" in {problem.message for problem in ready.refused.values()}
    ready = written(tmp_path, MIXED, device="cuda")
    show(ready, as_json=False)
    out, err = capsys.readouterr()
    said = " ".join(err.split())
    assert "mine.yaml:9: 2 ranks need 2 GPUs, but device cuda has 1" in said
    assert "mine.yaml:8: int8 weights are run on a CPU only" in said
    assert "no\tunsupported: 2 ranks need" in out
    runs = {one.cell.id: one.runs for one in decisions(ready, tmp_path / "records", False)}
    for cell in ready.plan.cells:
        on_gpu = "engine" in cell.settings
        able = not on_gpu or (cell.settings["ranks"] == 1 and cell.variant.is_dense)
        assert runs[cell.id] == able, cell.label
    driver.lists([("GPU-a", H100, "80000"), ("GPU-b", H100, "80000")])
    refused = written(tmp_path, MIXED, device="cuda").refused
    assert {cell.variant.is_dense for cell in ready.plan.cells if cell.id in refused} == {False}
    refused = written(tmp_path, MIXED, device="cpu").refused
    assert {problem.message for problem in refused.values()} == {"int8 weights are not run at 2 ranks"}


def test_seven_billion_parameters_take_sparsegpt_minutes_on_an_h100() -> None:
    plan = bare(variants=[{"prune": "sparsegpt", "sparsity": 0.5}], calibration={"samples": 128, "length": 2048})
    (job,) = [job for job in jobs(plan, plan.cells, lambda _: False) if job.kind == "make"]
    assert 60 < job_seconds(job, {"m": SEVEN}, "cuda") < 20 * 60
    assert job_seconds(job, {"m": SEVEN}) > 20 * job_seconds(job, {"m": SEVEN}, "cuda")


def test_jobs_run_side_by_side_as_the_scheduler_has_room() -> None:
    plan = bare(
        variants=[{"prune": "magnitude", "sparsity": 0.5}, {"prune": "wanda", "sparsity": 0.5}],
        benchmarks={"decoder": [{"task": "piqa"}]}, runtime={"engines": ["hf"]},
    )  # fmt: skip
    found = jobs(plan, plan.cells, lambda _: False)
    on_one = {(job.kind, uses_device(job)): concurrent_jobs(job, slots=4, gpus=1) for job in found}
    assert on_one == {
        ("prepare", False): 4, ("make", False): 4, ("make", True): 1, ("assess", False): 4, ("benchmarks", True): 1,
        ("latency", True): 1, ("memory", True): 1,
    }  # fmt: skip
    assert {concurrent_jobs(job, slots=4) for job in found if not runs_alone(job, False)} == {4}
    assert {concurrent_jobs(job, slots=16, gpus=8) for job in found if job.kind in ("benchmarks", "memory")} == {8}
    noisy = bare(runtime={"engines": ["deepspeed"], "ranks": [1, 4], "alone": "device"})
    found = [job for job in jobs(noisy, noisy.cells, lambda _: False) if job.kind == "latency"]
    assert [concurrent_jobs(job, slots=16, gpus=8) for job in found] == [8, 2]
    assert {concurrent_jobs(job, slots=4) for job in found} == {1}, "on a CPU there is nothing beside which to run"
    usual = bare(runtime={"engines": ["deepspeed"], "ranks": [1, 4]})
    assert not {cell.id for cell in usual.cells if "engine" in cell.settings} & {cell.id for cell in noisy.cells}
    spelled = bare(runtime={"engines": ["deepspeed"], "ranks": [1, 4], "alone": "machine"})
    assert [cell.id for cell in spelled.cells] == [cell.id for cell in usual.cells]


def test_timing_beside_other_jobs_is_refused_on_a_cpu(driver: Driver, tmp_path: Path) -> None:
    driver.lists([])
    ready = written(tmp_path, MIXED + "  alone: device\n")
    timed = {cell.id for cell in ready.plan.cells if "engine" in cell.settings}
    assert timed == ready.refused.keys()
    assert all(cell.label.endswith(" beside other jobs") for cell in ready.plan.cells if cell.id in timed)
    assert {(one.line, one.message.partition(":")[0]) for one in ready.refused.values()} == {(10, "alone")}
