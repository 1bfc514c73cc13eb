"""What a worker does when nobody listens any more."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench.run.recorder import Recorder


def test_a_lost_parent_ends_the_worker_and_is_no_error_of_a_cell() -> None:
    """An Exception would become the cell's failure at the worker's boundary."""
    reading, writing = os.pipe()
    spec: Any = SimpleNamespace(job=SimpleNamespace(cells=()))
    recorder = Recorder(spec, writing)
    recorder.progress(1, 2)
    os.close(reading)
    with pytest.raises(SystemExit):
        recorder.progress(2, 2)
    os.close(writing)
