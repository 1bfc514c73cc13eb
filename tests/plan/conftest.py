"""What plans of this room's tests are made for."""

import pytest

from sparsebench import processor


@pytest.fixture
def every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies every precision, whatever this one is."""
    monkeypatch.setattr(processor, "is_emulated", lambda dtype: False)
