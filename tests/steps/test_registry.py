"""What the table of steps fills into a step as it is written."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebench.steps.contract import Step
from sparsebench.steps.registry import details, known, label, single, with_text


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ({}, {"source": "path:usual", "field": "f", "target": "t"}),
        ({"field": "own"}, {"source": "path:usual", "field": "own", "target": "t"}),
        ({"source": "path:own"}, {"source": "path:own"}),
    ],
)
def test_a_step_that_names_no_text_gets_the_usual_one_and_keeps_its_own_columns(
    written: dict[str, Any], filled: dict[str, Any]
) -> None:
    trim = {"trim": "corpus"}
    assert with_text(trim | written, "path:usual", ("f", "t")) == trim | filled


def test_a_step_that_must_name_its_text_gets_none() -> None:
    written = {"shrink": "taylor", "units": "neurons"}
    assert with_text(written, "path:usual", ("f", None)) == written


def test_a_record_with_a_setting_that_is_no_more_reads_as_before() -> None:
    planned = single("shrink", "l2", keep=0.5, compensation="least_squares")
    recorded = Step("shrink", "l2", planned.settings | {"damping": 0.01})
    assert known(recorded) and (label(recorded), details(recorded)) == (label(planned), details(planned))


def test_a_record_with_another_value_of_such_a_setting_is_shown_with_all_it_says() -> None:
    recorded = Step("shrink", "l2", single("shrink", "l2", keep=0.5).settings | {"damping": 0.5})
    assert not known(recorded) and "damping=0.5" in label(recorded) and "damping=0.5" in details(recorded)
