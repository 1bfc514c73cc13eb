"""Progress that is redirected."""

import pytest

from sparsebench import progress


def test_a_log_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 30.0, 61.0, 90.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("tiny") as advance:
        for done in (1, 2, 3, 4):
            advance(done, 8)
    assert capsys.readouterr().err.splitlines() == ["… tiny: 25%, 3m left", "… tiny: 50%, 2m left"]


def test_the_time_left_is_of_this_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 600.0, 610.0, 670.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("tiny") as advance:
        for done in (4, 1, 2):
            advance(done, 4)
    assert capsys.readouterr().err.splitlines() == ["… tiny: 100%, 0s left", "… tiny: 50%, 60s left"]
