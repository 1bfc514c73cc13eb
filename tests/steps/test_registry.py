"""What the table of steps fills into a step as it is written."""

import json
import pickle
from typing import Any

import pytest

from sparsebench.steps.registry import details, known, label, recorded, single, with_text


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ({}, {"source": "path:usual", "field": "f", "target": "t"}),
        ({"field": "own"}, {"source": "path:usual", "field": "own", "target": "t"}),
        ({"source": "path:own"}, {"source": "path:own"}),
    ],
)
def test_a_step_without_a_text_gets_the_usual_one(written: dict[str, Any], filled: dict[str, Any]) -> None:
    trim = {"trim": "corpus"}
    assert with_text(trim | written, "path:usual", ("f", "t")) == trim | filled


def test_a_step_that_must_name_its_text_gets_none() -> None:
    written = {"shrink": "taylor", "units": "neurons"}
    assert with_text(written, "path:usual", ("f", None)) == written


def test_a_record_with_a_setting_that_is_no_more_reads_as_before() -> None:
    planned = single("shrink", "l2", keep=0.5, compensation="least_squares")
    old = planned.record() | {"settings": planned.settings.record() | {"damping": 0.01}}
    assert recorded(old) == planned


def test_a_record_with_another_value_of_such_a_setting_is_shown_with_all_it_says() -> None:
    planned = single("shrink", "l2", keep=0.5)
    other = recorded(planned.record() | {"settings": planned.settings.record() | {"damping": 0.5}})
    assert not known(other) and "damping=0.5" in label(other) and "damping=0.5" in details(other)


def test_a_step_is_the_same_after_a_record_and_after_another_process() -> None:
    asked = {"student": {"layers": [0, 2]}, "teacher": ["dense", "path:/t"], "alpha": 0.5}
    for step in (single("prune", "wanda", pattern="2:4"), single("recover", "distill", **asked)):
        assert recorded(json.loads(json.dumps(step.record()))) == step == pickle.loads(pickle.dumps(step))


def test_settings_without_effect_make_no_other_step() -> None:
    nearest = [single("quantize", "int8", damping=damping) for damping in (0.01, 0.5)]
    assert nearest[0] == nearest[1] and "damping" not in nearest[0].settings.record()
