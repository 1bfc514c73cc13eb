"""The compiled kernels, at every instruction set that this CPU has."""

from collections.abc import Iterator

import pytest
import torch

from sparsebench.native import Missing
from sparsebench.runtime.kernels import Kernels, kernels
from sparsebench.runtime.kernels.matrix import LEVELS


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    """The kernels at their best, and again so afterwards, with as many threads as before."""
    library, threads = kernels(), torch.get_num_threads()
    if isinstance(library, Missing):
        pytest.skip(library.reason)
    library.use(LEVELS[-1])
    yield library
    library.use(LEVELS[-1])
    torch.set_num_threads(threads)


def levels(kernels: Kernels) -> Iterator[str]:
    """Use every instruction set of this CPU in turn, lowest first."""
    kernels.use(LEVELS[-1])
    for level in LEVELS[: LEVELS.index(kernels.level) + 1]:
        kernels.use(level)
        yield level
