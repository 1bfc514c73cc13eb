"""Ranks that are found out soon, and what stands in the place of ranks."""

from collections.abc import Callable
from typing import Any

import pytest

from sparsebench import environment
from sparsebench.runtime import group, launch, measure, watch


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is enough for a rank that does nothing to hang, and for others to end once one has failed."""
    seconds = (
        (group, "GRACE_SECONDS", 1.0),
        (group, "ECHO_SECONDS", 3.0),
        (launch, "IDLE_POLL_SECONDS", 0.5),
        (watch, "STALL_SECONDS", 1.0),
    )
    for module, name, value in seconds:
        monkeypatch.setattr(module, name, value)


class Started(Exception):
    """Ranks would have been, for a job."""


@pytest.fixture
def replace_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Has measurements take another class, called with job and setting, for groups of ranks."""
    return lambda group: monkeypatch.setattr(measure, "RankGroup", group)


@pytest.fixture
def no_ranks(replace_ranks: Callable[[Callable[..., Any]], None]) -> None:
    """Where ranks would start, raises Started."""

    def group(job: dict[str, Any], _: object) -> None:
        raise Started(job["baseline"], job["variants"])

    replace_ranks(group)


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the bytes of main memory that are free."""
    return lambda size: monkeypatch.setattr(environment, "memory", lambda: (2**40, size))
