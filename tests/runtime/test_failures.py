"""What an error of a rank is taken for, and how it reaches the parent."""

from types import SimpleNamespace

import pytest

from sparsebench.errors import UnsupportedError
from sparsebench.runtime import Setting, Workload, failures, rank


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
    assert rank.attempt(job, fails) == 3
    assert told == [{"type": "UnsupportedError", "message": "not here", "hint": "elsewhere"}]
