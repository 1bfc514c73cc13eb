"""Calls of the notebook's functions that mean nothing: refused at once, by the argument's name, as errors of this package."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import Field

from sparsebench import apply, inspect, load, measure, score, sizes, sql
from sparsebench.arguments import checked
from sparsebench.errors import SparsebenchError, UserError
from sparsebench.paths import partial_of, sweep
from sparsebench.plan.single import SingleModel
from sparsebench.steps.contract import StepKind
from tests.adversarial import benign

HALF = {"prune": "magnitude", "sparsity": 0.5}
INT4 = {"quantize": "int4"}
GONE = SingleModel("gone", Path("gone"), "decoder")
"""A model that is not there: a call that comes so far as to open it fails by another error than the one expected."""
NAN = float("nan")

Call = Callable[[], Any]
CALLS: dict[str, list[Call]] = {
    "model": [
        lambda: apply(None, HALF, "out"),
        lambda: apply(SingleModel("m", Path("gone"), "no family"), HALF, "out"),
        lambda: inspect("model"),
        lambda: sizes(None),
        lambda: score(5, "piqa"),
        lambda: measure(),
    ],
    "against": [lambda: score(GONE, "piqa", "model"), lambda: measure(GONE, against="model")],
    "recipe": [lambda recipe=recipe: apply(GONE, recipe, "out") for recipe in (5, "prune", [None], {5: 6})],
    "without a step": [lambda: apply(GONE, [], "out")],
    "verbs": [lambda: apply(GONE, {"sparsity": 0.5}, "out")],
    "2 variants": [lambda: apply(GONE, {**HALF, "sparsity": [0.5, 0.9]}, "out")],
    "magnitud": [lambda: apply(GONE, {**HALF, "prune": "magnitud"}, "out")],
    "cannot follow skip: teal": [lambda: apply(GONE, [{"skip": "teal", "share": 0.4}, HALF], "out")],
    "prune": [lambda name=name: apply(GONE, {"prune": name}, "out") for name in (5, ["magnitude"], None)],
    "sparsity": [lambda share=share: apply(GONE, {**HALF, "sparsity": share}, "out") for share in (NAN, -1, 2.0, True)],
    "group": [lambda group=group: apply(GONE, {**INT4, "group": group}, "out") for group in (0, 1.5)],
    "out": [lambda out=out: apply(GONE, HALF, out) for out in ("", None, b"out")],
    "missing": [lambda: apply(GONE, HALF), lambda: load()],
    "nothing": [
        lambda: load("model", nothing=5),
        lambda: apply(GONE, {**HALF, "nothing": 5}, "out"),
        lambda: apply(GONE, HALF, "out", calibration={"nothing": 5}),
    ],
    "calibration": [lambda text=text: apply(GONE, HALF, "out", calibration=text) for text in ("text", [("a", 1, 2)])],
    "samples": [lambda: measure(GONE, samples=3), lambda: apply(GONE, HALF, "out", calibration={"samples": -1})],
    "seed": [lambda seed=seed: apply(GONE, HALF, "out", seed=seed) for seed in (1.5, 2**62)],
    "device": [
        lambda: apply(GONE, HALF, "out", device=""),
        lambda: score(GONE, "piqa", device="gpu"),
        lambda: measure(GONE, device=0),
    ],
    "offline": [lambda: apply(GONE, HALF, "out", offline=5)],
    "source": [lambda: load(""), lambda: load(["model"])],
    "dtype": [lambda: load("model", dtype="float8")],
    "family": [lambda: load("model", family="no family")],
    "relative": [lambda value=value: inspect(GONE, value) for value in ([NAN], [1e308], "0.5")],
    "formats": [lambda value=value: sizes(GONE, value) for value in ("dense", [])],
    "tasks": [lambda value=value: score(GONE, value) for value in ([], "", {"piqa": 1})],
    "limit": [lambda count=count: score(GONE, "piqa", limit=count) for count in (0, NAN, np.int64(-1))],
    "num_fewshot": [lambda: score(GONE, "piqa", num_fewshot=10**9)],
    "batch": [lambda count=count: measure(GONE, batch=count) for count in (0, True, 10**18)],
    "ranks": [lambda: measure(GONE, ranks=10**6)],
    "divergence": [lambda: score(GONE, "perplexity", divergence=True), lambda: score(GONE, "piqa", divergence=1)],
    "engine": [lambda: measure(GONE, engine=5), lambda: measure(GONE, engine="nothing")],
    "query": [lambda: sql(""), lambda: sql(b"select 1")],
    "ledger": [lambda: sql("select 1", "")],
    "file/below": [lambda: apply(GONE, HALF, "file/below")],
    "/proc/none": [lambda: apply(GONE, HALF, "/proc/none/below")],
    "x" * 300: [lambda: apply(GONE, HALF, "x" * 300)],
    "a\0b": [lambda: apply(GONE, HALF, "a\0b")],
}  # fmt: skip
"""Calls by what their error has to name."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("culprit", "call"),
    [
        pytest.param(name, call, id=f"{name[:12]!r}-{number}")
        for name, calls in CALLS.items()
        for number, call in enumerate(calls)
    ],
)
def test_a_call_that_means_nothing_is_refused_by_name(culprit: str, call: Call, home: Path) -> None:
    before = sorted(home.rglob("*"))
    with pytest.raises(SparsebenchError) as raised:
        call()
    assert culprit in raised.value.message and "gone" not in raised.value.message
    assert sorted(home.rglob("*")) == before


FAILING = {
    "blocks: 99": {"shrink": "first", "blocks": 99},
    "heads: 3": {"shrink": "l2", "of": "heads", "heads": 3},
    "none.json": {"shrink": "list", "file": "none.json"},
    "odd.txt": {"trim": "list", "file": "odd.txt"},
    "masks.safetensors": {"prune": "mask", "file": "masks.safetensors"},
    "group: 10000000": {**INT4, "group": 10_000_000},
    "down_proj.weight": {**INT4, "group": 65},
}
"""Steps that fail at work, by what their error has to name."""


@pytest.mark.parametrize("culprit", FAILING)
def test_a_step_that_fails_raises_its_own_error(culprit: str, home: Path) -> None:
    dense = load(benign.model(home / "model"))
    (home / "odd.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(SparsebenchError) as raised:
        apply(dense, [HALF, FAILING[culprit]], "made/out")
    assert culprit in str(raised.value)
    assert not list((home / "made").iterdir())


def test_times_of_two_families_are_not_compared(tiny_bert: Path, tiny_llama: Path) -> None:
    encoder, decoder = SingleModel("bert", tiny_bert, "encoder"), SingleModel("llama", tiny_llama, "decoder")
    with pytest.raises(UserError, match="bert is of the family encoder, and llama of decoder"):
        measure(encoder, against=decoder)


def test_a_step_that_ends_without_a_result_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepKind, "load", lambda kind: lambda *given: None)
    with pytest.raises(SparsebenchError, match="prune: magnitude"):
        apply(GONE, HALF, "out")


def test_what_a_killed_chain_has_left_is_removed_by_the_next(home: Path) -> None:
    dense = load(benign.model(home / "model"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = home / partial_of(Path("out.steps")).name.replace(str(os.getpid()), str(ended.pid))
    (left / "1").mkdir(parents=True)
    apply(dense, [HALF, {**INT4, "group": 64}], "out")
    assert sorted(path.name for path in home.iterdir()) == ["file", "model", "out"]


@pytest.mark.parametrize("process", ["²", "9" * 30])
def test_a_name_that_gives_no_process_is_nobody_s_leftover(process: str, home: Path) -> None:
    name = partial_of(Path("out")).name.replace(str(os.getpid()), process)
    (home / name).mkdir()
    sweep(home)
    assert (home / name).is_dir()


def test_what_a_function_accepts_reaches_it(home: Path) -> None:
    @checked
    def counted(count: Annotated[int, Field(ge=1)], *, name: str | Path = "a") -> tuple[Any, ...]:
        """Return what it was given."""
        return type(count), count, name

    assert counted(np.int64(5)) == (int, 5, "a")
    assert counted(count=2, name=Path("b")) == (int, 2, Path("b"))
    assert counted.__doc__ == "Return what it was given."
    with pytest.raises(UserError, match="count"):
        counted(np.int64(0))
