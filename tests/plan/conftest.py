"""What plans of this room's tests are made for."""

from collections.abc import Callable

import pytest

from sparsebench import environment, processor


@pytest.fixture
def every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies every precision, whatever this one is."""
    monkeypatch.setattr(processor, "is_emulated", lambda dtype: False)


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes of this machine's memory are free."""
    return lambda free: monkeypatch.setattr(environment, "memory", lambda: (2**40, free))
