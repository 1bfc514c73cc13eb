"""Real ranks that die, hang, or run out of memory in the middle of a measurement: who, why, how soon, and nothing left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.runtime import Setting, Workload, failures, launch, measure, measure_pair, rank, shm, watch
from sparsebench.runtime import group as groups
from sparsebench.runtime.group import RankGroup

ENTRY = [str(Path(__file__).with_name("faulty_rank.py"))]
GROUPS = Path("/sys/fs/cgroup/memory")
"""Control groups, version 1."""


@pytest.mark.parametrize(
    ("error", "memory", "echo"),
    [
        (MemoryError(), True, False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True, False),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5213"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("out of memory is a word in a sentence"), False, False),
    ],
)
def test_errors_are_told_apart(error: Exception, memory: bool, echo: bool) -> None:
    assert (failures.out_of_memory(error), failures.echo(error)) == (memory, echo)


def test_a_plugins_own_error_reaches_the_parent_as_the_nearest_that_it_knows() -> None:
    class OwnError(UnsupportedError):
        pass

    def fails() -> None:
        raise OwnError("not here", "elsewhere")

    told: list[dict[str, object]] = []
    channel = SimpleNamespace(send=lambda kind, **content: told.append(content))
    job = SimpleNamespace(rank=0, setting=Setting("hf", 1, Workload()), channel=channel)
    assert rank.attempt(job, fails) == 3  # type: ignore[arg-type]
    assert told == [{"type": "UnsupportedError", "message": "not here", "hint": "elsewhere"}]


@contextmanager
def faulty(fault: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ranks with a fault; afterwards none of their processes and none of their buffers is left."""
    started: list[RankGroup] = []

    def made(spec: dict[str, object], setting: Setting) -> RankGroup:
        started.append(RankGroup(spec, setting, ENTRY))
        return started[-1]

    monkeypatch.setattr(measure, "RankGroup", made)
    monkeypatch.setenv("FAULT", fault)
    before = set(shm.BUFFERS.iterdir())
    yield
    numbers = {process.pid for group in started for process in group.here.processes.values()}
    assert len(numbers) == 2
    assert not [one for one in psutil.pids() if _group(one) in numbers]
    assert set(shm.BUFFERS.iterdir()) <= before


def _group(process: int) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(process)
    return -1


def _measure(folder: Path) -> None:
    setting = Setting(
        "deepspeed", 2, Workload(1, 12, 4), samples=8, threads=1, processes=1, phase_seconds=0.5, timeout_seconds=300
    )
    measure_pair(folder, folder, "decoder", setting)
    pytest.fail("it was measured")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param("kill@1", r"rank 1 of 2 died of SIGKILL", marks=pytest.mark.long),
        pytest.param("kill@0", r"rank 0 of 2 died of SIGKILL", marks=pytest.mark.long),
        pytest.param("memory@1", r"rank 1 of 2 ran out of memory: .*allocate", marks=pytest.mark.long),
        pytest.param(
            "hang@1",
            r"rank 1 of 2 hangs: nothing is done for 3 seconds or more; rank 1 at runtime/faulty_rank.py:\d+ in fault",
            marks=pytest.mark.long,
        ),
        ("stop@0", r"rank 0 of 2 hangs: .* rank 0 does not answer"),
    ],
)
def test_a_rank_that_fails_is_named_with_the_reason(
    tiny_llama: Path, fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(watch, "STALL_SECONDS", 3.0)
    monkeypatch.setattr(groups, "STALL_SECONDS", 3.0)
    monkeypatch.setattr(launch, "LOOK_SECONDS", 1.0)
    with faulty(fault, monkeypatch), pytest.raises(MeasureError, match=said):
        _measure(tiny_llama)


@pytest.mark.long
@pytest.mark.skipif(bool(shm.missing()), reason="the shared-memory operation cannot be compiled here")
def test_a_killed_rank_leaves_nothing_in_shared_memory(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty("kill@1", monkeypatch), pytest.raises(MeasureError, match="rank 1 of 2 died of SIGKILL"):
        _measure(tiny_llama)
