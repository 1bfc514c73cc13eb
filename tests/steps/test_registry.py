"""What the table of steps fills into a step as it is written."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebench.steps.registry import with_text


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
