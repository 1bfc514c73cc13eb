"""The compiled kernels, at every instruction set that this CPU has."""

from collections.abc import Iterator

import pytest

from sparsebench.native import Missing
from sparsebench.runtime.kernels import Kernels, kernels
from sparsebench.runtime.kernels.matrix import LEVELS


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    """The kernels at their best, and again so afterwards."""
    found = kernels()
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    found.use(LEVELS[-1])
    yield found
    found.use(LEVELS[-1])


def levels(kernels: Kernels) -> list[str]:
    """Every instruction set of this CPU, lowest first."""
    kernels.use(LEVELS[-1])
    return list(LEVELS[: LEVELS.index(kernels.level) + 1])
