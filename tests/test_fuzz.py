"""The command that mutates inputs: some of each kind pass, what is no error of ours is found, a number is one input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from sparsebench.errors import UserError
from studies.fuzz import judge
from studies.fuzz.judge import Outcome, one, unlike
from studies.fuzz.targets import TARGETS, Target

COUNTS = {"manifest": 40, "header": 25, "config": 20, "packed": 30, "archive": 10, "gguf": 3, "record": 6, "figure": 3}


@pytest.mark.parametrize("name", TARGETS)
def test_some_of_each_kind(name: str, tmp_path: Path) -> None:
    target = judge.made(name, tmp_path / "target")
    found = [one(name, number, target, target.mutated(Random(f"0 {name} {number}"))) for number in range(COUNTS[name])]
    assert [outcome for outcome in unlike(found) if outcome.became != "slow"] == []
    assert len({outcome.became for outcome in found}) > 1 or COUNTS[name] < 10, "all alike: nothing is tried"


class Given(Target):
    """Does what it is given."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def mutated(self, random: Random) -> bytes:
        return b""

    def harmless(self) -> bytes:
        return b""

    def read(self, given: bytes) -> None:
        self.act()


def _busy() -> None:
    while True:
        pass


def _refuse(words: str) -> None:
    raise UserError(words)


@pytest.mark.parametrize(
    ("act", "became", "what"),
    [
        (lambda: None, "success", ""),
        (lambda: _refuse("no"), "refused", ""),
        (lambda: _refuse(""), "refused", "says nothing"),
        (lambda: {}["x"], "foreign", "KeyError"),
        (lambda: exit(3), "foreign", "SystemExit"),
        (_busy, "slow", "test_fuzz"),
    ],
)
def test_what_becomes_of_an_input(
    act: Callable[[], object], became: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "GIVEN_UP", 0.1)
    found = one("x", 1, Given(act), b"")
    assert found.became == became and what in found.what and bool(found.what) == bool(what)


def test_failures_alike_are_told_once() -> None:
    found = [Outcome("x", number, "foreign", 0.0, f"KeyError: {number} at a.py:1") for number in range(3)]
    found += [Outcome("x", 5, "foreign", 0.0, "KeyError: 5 at b.py:1"), Outcome("x", 6, "success", 0.0)]
    assert [outcome.number for outcome in unlike(found)] == [0, 5]


@pytest.mark.parametrize("name", ["manifest", "header", "packed", "record"])
def test_a_number_is_always_the_same_input(name: str, tmp_path: Path) -> None:
    first, second = (TARGETS[name](tmp_path / place) for place in "ab")
    for number in range(20):
        given = {target.mutated(Random(f"7 {name} {number}")) for target in (first, second)}
        assert len(given) == 1
