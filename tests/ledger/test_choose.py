"""The command that makes a variant again names the text that it was calibrated on."""

import shlex
from pathlib import Path

import pytest

from sparsebench.ledger.choose import make_command
from sparsebench.plan.expand import describe_calibration
from sparsebench.steps.calibration import DEFAULT, Calibration


@pytest.mark.parametrize(
    ("source", "field", "option"),
    [
        (DEFAULT.source, "passage", "length: 64"),
        (DEFAULT.source, "question", "field: question, length: 64"),
        ("path:/my data/x.jsonl", None, "source: 'path:/my data/x.jsonl', length: 64"),
        ("path:/my data/x.jsonl", "text", "source: 'path:/my data/x.jsonl', field: text, length: 64"),
    ],
)
def test_a_text_of_any_name_is_named(source: str, field: str | None, option: str, ledger: Path) -> None:
    described = describe_calibration(Calibration(source, DEFAULT.samples, 64, 0, field))
    row = {"variant_id": "v", "source": "path:m", "model": "m", "recipe": "r", "seed": 0, "dtype": "auto"}
    words = shlex.split(make_command(ledger, {**row, "calibration": described}))
    assert words[words.index("--calibration") + 1] == option
