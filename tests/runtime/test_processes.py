"""Several processes time a setting: what becomes of their messages, and of the others where one of them fails."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from sparsebench import children
from sparsebench.errors import MeasureError, ParityError, SparsebenchError
from sparsebench.runtime import LatencyResult, Setting, Workload, measure, measure_latency

STEP = 0.01


class Group:
    """Ranks of which a variant's folder says what it does: ``off`` fails always, ``late`` in process 1, ``added`` in 3.

    Process 3 fails after ``ends badly`` has said all.
    """

    began: list[tuple[list[int], list[str]]]
    error: type[MeasureError]
    said = ""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def messages(self) -> Iterator[dict[str, Any]]:
        folders = [Path(folder).name for folder in self.job["variants"]]
        self.began.append((list(self.job["processes"]), folders))
        for process in self.job["processes"]:
            for index, name in enumerate(folders):
                if name.startswith("off") or (name, process) in (("late", 1), ("added", 3)):
                    raise self.error(self.said or f"{name} is off")
                message = told(index, process, 0.5 if name in ("quick", "skips") else 1 + 0.1 * process)
                yield message | ({"kernel": f"skipping ({60 + process}% read)"} if name == "skips" else {})
        if list(self.job["processes"]) == [3] and "ends badly" in folders:
            raise self.error("the rank hangs")


def told(index: int, process: int, ratio: float) -> dict[str, Any]:
    samples = [
        {
            "phase": "forward",
            "side": side,
            "block": block,
            "index": 0,
            "wall_s": wall,
            "cpu_s": wall,
            "process": process,
        }
        for block in range(2)
        for side, wall in (("dense", STEP), ("variant", ratio * STEP))
    ]
    facts = {
        "kernel": "k" if ratio < 1.2 else "other tiles",
        "threads": 1,
        "device": "cpu",
        "dtype": "float32",
        "notes": [],
        "parity": None,
    }
    steady_phases = [("forward", "dense"), ("forward", "variant")]
    return {
        "kind": "result", "index": index, "process": process, "samples": samples, "steady": steady_phases, "energy": [],
        "energy_source": "", **facts,
    }  # fmt: skip


def measured(
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    forks: bool = True,
    error: type[MeasureError] = MeasureError,
    said: str = "",
) -> tuple[dict[str, LatencyResult | str], list[tuple[list[int], list[str]]]]:
    """What was found of each variant, and the processes and variants of each group that began."""
    began: list[tuple[list[int], list[str]]] = []
    monkeypatch.setattr(Group, "began", began, raising=False)
    monkeypatch.setattr(Group, "error", error, raising=False)
    monkeypatch.setattr(Group, "said", said)
    monkeypatch.setattr(measure, "RankGroup", lambda job, setting: Group(job))
    monkeypatch.setattr(children, "may_fork", lambda: forks)
    monkeypatch.setattr(measure, "check_folder", lambda *_: None)
    monkeypatch.setattr(measure, "_measured_family", lambda _, family: family)
    monkeypatch.setattr(measure, "_check_fits", lambda *_: None)
    monkeypatch.setattr(measure, "_pair_fits", lambda *_: True)
    monkeypatch.setattr(measure, "model_bytes", lambda *_: 1)
    found: dict[str, LatencyResult | str] = {}

    def emit(key: str, one: LatencyResult | SparsebenchError) -> None:
        found[key] = one.message if isinstance(one, SparsebenchError) else one

    setting = Setting("hf", 1, Workload(), processes=3)
    measure_latency(Path("dense"), [(name, Path(name)) for name in names], "encoder", setting, emit)
    return found, began


def test_a_precise_variant_needs_no_more_and_a_wide_one_half_as_many_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found, began = measured(monkeypatch, ["quick", "varies"])
    assert began == [([0, 1, 2], ["quick", "varies"]), ([3], ["varies"])]
    quick, varies = found["quick"], found["varies"]
    assert isinstance(quick, LatencyResult) and isinstance(varies, LatencyResult)
    assert (quick.differences[0].processes, varies.differences[0].processes) == (3, 4)
    assert quick.differences[0].ratio == pytest.approx(0.5)
    assert {one.process for one in varies.samples} == {0, 1, 2, 3}
    assert (quick.kernel, varies.kernel) == ("k", "k")
    assert "2 of 4 processes ran other tiles" in varies.notes and not any("processes ran" in one for one in quick.notes)


def test_where_forks_are_not_safe_every_process_is_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    found, began = measured(monkeypatch, ["quick"], forks=False)
    assert began == [([0], ["quick"]), ([1], ["quick"]), ([2], ["quick"])]
    assert isinstance(found["quick"], LatencyResult)


@pytest.mark.parametrize("error", [ParityError, MeasureError])
def test_a_variant_that_is_off_fails_alone(monkeypatch: pytest.MonkeyPatch, error: type[MeasureError]) -> None:
    found, began = measured(monkeypatch, ["quick", "off", "quick too"], error=error)
    assert began[:2] == [([0, 1, 2], ["quick", "off", "quick too"]), ([0, 1, 2], ["quick", "quick too"])]
    assert found["off"] == "off is off"
    assert isinstance(found["quick"], LatencyResult)
    assert sorted({one.process for one in found["quick"].samples}) == [0, 1, 2]
    assert len(found["quick"].samples) == 3 * 4


def test_one_that_fails_in_a_later_process_leaves_the_others_what_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    found, began = measured(monkeypatch, ["quick", "late"])
    assert began == [([0, 1, 2], ["quick", "late"]), ([1, 2], ["quick"])]
    assert found["late"] == "late is off"
    quick = found["quick"]
    assert isinstance(quick, LatencyResult)
    assert len(quick.samples) == 3 * 4


def test_one_that_fails_in_an_added_process_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found, began = measured(monkeypatch, ["varies", "added"])
    assert began[1:] == [([3], ["varies", "added"]), ([3], ["varies"])]
    varies, added = found["varies"], found["added"]
    assert isinstance(varies, LatencyResult) and isinstance(added, LatencyResult)
    assert [{one.process for one in result.samples} for result in (varies, added)] == [{0, 1, 2, 3}, {0, 1, 2}]
    assert any("added is off" in note for note in added.notes)
    assert not any("is off" in note for note in varies.notes)


def test_added_processes_that_end_badly_have_measured_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found, began = measured(monkeypatch, ["varies", "ends badly"])
    assert began[1:] == [([3], ["varies", "ends badly"])]
    for result in found.values():
        assert isinstance(result, LatencyResult) and {one.process for one in result.samples} == {0, 1, 2, 3}
        assert not any("hangs" in note for note in result.notes)


def test_kernels_that_read_other_shares_of_the_weights_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    skips = measured(monkeypatch, ["skips"])[0]["skips"]
    assert isinstance(skips, LatencyResult)
    assert skips.kernel == "skipping (60% read)" and not any("processes ran" in note for note in skips.notes)


def test_what_is_not_a_variants_own_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeasureError, match="no compiler"):
        measured(monkeypatch, ["off", "off too", "quick"], said="no compiler")


def test_two_that_fail_alike_around_one_that_does_not_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, ["off", "quick", "off too"], said="out of memory")
    assert isinstance(found["quick"], LatencyResult)
    assert (found["off"], found["off too"]) == ("out of memory", "out of memory")


FORK = """
import os, sys
from sparsebench.children import call_in_fork
def do():
    {what}
    return 0
code = call_in_fork(do, lambda child: print(child != os.getpid(), flush=True))
print("waited", code, flush=True)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("return 0", 0, "waited 0"),
        ("return 3", 3, "waited 3"),
        ("raise ValueError('so')", 1, "waited 1"),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("os.kill(os.getpid(), 11)", -signal.SIGSEGV, ""),
    ],
)
def test_a_fork_ends_its_parent_as_it_ended(what: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK.format(what=what)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.splitlines()[0] == "True"
    assert (said in done.stdout) if said else ("waited" not in done.stdout)
    assert ("ValueError: so" in done.stderr) == ("ValueError" in what)
