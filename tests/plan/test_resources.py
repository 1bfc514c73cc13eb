"""What jobs need in memory, on disk and from the network."""

from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import sources
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.resources import PACKED_SHARE, job_bytes, needs
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import single


def test_what_runs_or_trains_the_whole_model_takes_its_memory() -> None:
    size = ModelSize(10**8, 2 * 10**8)

    def needed(step: Step) -> int:
        made = Variant("v", "m", "decoder", "path:m", "r", "real", "bfloat16", steps=(step,))
        return job_bytes(Job("a", "make", (Cell("a", "make", made, {}),), (made,)), size)

    blockwise = needed(single("shrink", "influence", blocks=8))
    assert needed(single("shrink", "activation", keep=0.5, compensation="least_squares")) == blockwise
    assert needed(single("shrink", "sleb", blocks=8)) == blockwise + 4 * 10**8
    assert needed(single("shrink", "taylor", keep=0.5, iterations=4)) == blockwise + 4 * 10**8
    assert needed(single("recover", "finetune")) == blockwise + 20 * 10**8, "with gradients and moments in float32"


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


def test_the_disk_of_variants_is_that_of_as_many_models() -> None:
    def disk(keep: str, count: int) -> int:
        pruned = (single("prune", "magnitude", sparsity=0.5),)
        made = [Variant(str(n), "m", "decoder", "path:m", "r", "real", "float32", steps=pruned) for n in range(count)]
        ready: Any = SimpleNamespace(
            sizes={"m": ModelSize(10**9, 10**9)}, device="cpu", keep=keep, request=SimpleNamespace(jobs=1),
            has=lambda model: True,
        )  # fmt: skip
        return needs(ready, [Job("a", "make", (), tuple(made))]).disk

    assert disk("none", 3) == disk("dense", 3) == 3 * 10**9
    assert disk("packed", 2) == 2 * 10**9 + int(2 * 10**9 * PACKED_SHARE)
