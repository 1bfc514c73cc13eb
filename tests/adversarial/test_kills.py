"""Runs that are killed at random moments: nothing is lost, twice, wrong, left behind, falsely failed or alive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversarial import kills


@pytest.mark.long
def test_kills_leave_what_an_undisturbed_run_leaves(tmp_path: Path) -> None:
    tally = kills.attack(tmp_path, 4)
    assert tally.total == 4 and not any(tally.wrong.values()), tally
