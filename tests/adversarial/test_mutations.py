"""Mutated manifests, weight files, configurations, records and figures: each is taken, or refused by an error of ours."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import SparsebenchError
from tests.adversarial.readers import TARGETS, Target
from tests.adversarial.watch import cheap

COUNTS = {"manifest": 40, "header": 25, "config": 20, "packed": 30, "archive": 10, "gguf": 3, "record": 6, "figure": 3}
"""Inputs by kind; `make test-long` draws a thousand of each."""
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """What has read a harmless input, so that all is imported and no other input is refused for another reason."""
    made = TARGETS[request.param](tmp_path_factory.mktemp("target") / request.param)
    made.read(made.harmless())
    return made


def refused(target: Target, seed: int) -> bool:
    """Whether an input is refused; any other error than ours is raised, and so is one that says nothing."""
    try:
        with cheap():
            target.read(target.mutated(Random(seed)))
    except SparsebenchError as error:
        assert str(error).strip()  # noqa: PT017 - most inputs raise nothing
        return True
    return False


def test_some_of_each_kind_are_refused_and_none_ends_otherwise(target: Target) -> None:
    (name,) = (name for name, kind in TARGETS.items() if kind is type(target))
    found = [refused(target, seed) for seed in range(COUNTS[name])]
    assert len(set(found)) > 1 or COUNTS[name] < 10, "all alike: nothing is tried"


@pytest.mark.long
@settings(print_blob=True)
@given(seed=SEEDS)
def test_others_of_each_kind(target: Target, seed: int) -> None:
    refused(target, seed)


def test_a_seed_is_always_the_same_input(target: Target, tmp_path: Path) -> None:
    again = type(target)(tmp_path / "again")
    assert all(target.mutated(Random(seed)) == again.mutated(Random(seed)) for seed in range(10))
