"""Several processes time a setting: what becomes of their messages, and of the others where one of them fails."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from sparsebench import children
from sparsebench.errors import MeasureError, ParityError, SparsebenchError
from sparsebench.runtime import LatencyResult, Setting, Workload, measure_latency
from sparsebench.runtime.results import TimingSample

STEP = 0.01


@dataclass
class Group:
    """Ranks of which a variant's folder says what it does: ``off`` fails always, ``late`` in process 1, ``added`` in 3.

    Process 3 fails after ``ends badly`` has said all.
    """

    job: dict[str, Any]
    began: list[tuple[list[int], list[str]]]
    error: type[MeasureError]
    said: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

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
        asdict(TimingSample("forward", side, block, 0, wall, wall, process))
        for block in range(2)
        for side, wall in (("dense", STEP), ("variant", ratio * STEP))
    ]
    return {
        "kind": "result", "index": index, "process": process, "samples": samples, "energy": [], "energy_source": "",
        "steady": [("forward", "dense"), ("forward", "variant")], "kernel": "k" if ratio < 1.2 else "other tiles",
        "threads": 1, "device": "cpu", "dtype": "float32", "notes": [], "parity": None, "read_bytes_per_second": 1e10,
    }  # fmt: skip


Measured = Callable[..., tuple[dict[str, Any], list[tuple[list[int], list[str]]]]]


@pytest.fixture
def measured(
    tiny_bert: Path, tmp_path: Path, replace_ranks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Measured:
    """Gives what was found of each variant, and the processes and variants of each group that began."""

    def measure_all(
        *names: str, forks: bool = True, error: type[MeasureError] = MeasureError, said: str = ""
    ) -> tuple[dict[str, Any], list[tuple[list[int], list[str]]]]:
        began: list[tuple[list[int], list[str]]] = []
        found: dict[str, Any] = {}
        replace_ranks(lambda job, _: Group(job, began, error, said))
        monkeypatch.setattr(children, "may_fork", lambda: forks)
        for name in ("dense", *names):
            (tmp_path / name).symlink_to(tiny_bert)

        def emit(key: str, one: LatencyResult | SparsebenchError) -> None:
            found[key] = one.message if isinstance(one, SparsebenchError) else one

        setting = Setting("hf", 1, Workload(prompt=8), processes=3)
        measure_latency(tmp_path / "dense", [(name, tmp_path / name) for name in names], "encoder", setting, emit)
        return found, began

    return measure_all


def test_a_precise_variant_needs_no_more_and_a_wide_one_half_as_many_more(measured: Measured) -> None:
    found, began = measured("quick", "varies")
    assert began == [([0, 1, 2], ["quick", "varies"]), ([3], ["varies"])]
    quick, varies = found["quick"], found["varies"]
    assert (quick.differences[0].processes, varies.differences[0].processes) == (3, 4)
    assert quick.differences[0].ratio == pytest.approx(0.5)
    assert {one.process for one in varies.samples} == {0, 1, 2, 3}
    assert (quick.kernel, varies.kernel) == ("k", "k")
    assert "2 of 4 processes ran other tiles" in varies.notes and not any("processes ran" in one for one in quick.notes)


def test_where_forks_are_not_safe_every_process_is_a_group(measured: Measured) -> None:
    found, began = measured("quick", forks=False)
    assert began == [([0], ["quick"]), ([1], ["quick"]), ([2], ["quick"])]
    assert isinstance(found["quick"], LatencyResult)


@pytest.mark.parametrize("error", [ParityError, MeasureError])
def test_a_variant_that_is_off_fails_alone(measured: Measured, error: type[MeasureError]) -> None:
    found, began = measured("quick", "off", "quick too", error=error)
    assert began[:2] == [([0, 1, 2], ["quick", "off", "quick too"]), ([0, 1, 2], ["quick", "quick too"])]
    assert found["off"] == "off is off"
    assert sorted({one.process for one in found["quick"].samples}) == [0, 1, 2]
    assert len(found["quick"].samples) == 3 * 4


def test_one_that_fails_in_a_later_process_leaves_the_others_what_they_had(measured: Measured) -> None:
    found, began = measured("quick", "late")
    assert began == [([0, 1, 2], ["quick", "late"]), ([1, 2], ["quick"])]
    assert found["late"] == "late is off"
    assert len(found["quick"].samples) == 3 * 4


def test_one_that_fails_in_an_added_process_keeps_what_it_has(measured: Measured) -> None:
    found, began = measured("varies", "added")
    assert began[1:] == [([3], ["varies", "added"]), ([3], ["varies"])]
    varies, added = found["varies"], found["added"]
    assert [{one.process for one in result.samples} for result in (varies, added)] == [{0, 1, 2, 3}, {0, 1, 2}]
    assert any("added is off" in note for note in added.notes)
    assert not any("is off" in note for note in varies.notes)


def test_added_processes_that_end_badly_have_measured_all(measured: Measured) -> None:
    found, began = measured("varies", "ends badly")
    assert began[1:] == [([3], ["varies", "ends badly"])]
    for result in found.values():
        assert {one.process for one in result.samples} == {0, 1, 2, 3}
        assert not any("hangs" in note for note in result.notes)


def test_kernels_that_read_other_shares_of_the_weights_are_one(measured: Measured) -> None:
    skips = measured("skips")[0]["skips"]
    assert skips.kernel == "skipping (60% read)" and not any("processes ran" in note for note in skips.notes)


def test_what_is_not_a_variants_own_ends_the_job(measured: Measured) -> None:
    with pytest.raises(MeasureError, match="no compiler"):
        measured("off", "off too", "quick", said="no compiler")


@pytest.mark.parametrize("forks", [True, False])
@pytest.mark.parametrize("names", [("off", "quick", "off too"), ("off", "late", "quick")], ids=" ".join)
def test_two_that_fail_alike_around_a_measurement_fail_alone(
    measured: Measured, names: tuple[str, ...], forks: bool
) -> None:
    found, _ = measured(*names, forks=forks, said="out of memory")
    assert isinstance(found.pop("quick"), LatencyResult)
    assert [*found.values()] == ["out of memory"] * 2


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
    done = subprocess.run([sys.executable, "-c", FORK.format(what=what)], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.splitlines()[0] == "True"
    assert (said in done.stdout) if said else ("waited" not in done.stdout)
    assert ("ValueError: so" in done.stderr) == ("ValueError" in what)
