"""The command that makes a variant again names the text that it was calibrated on."""

import shlex
from pathlib import Path

import pytest

from sparsebench.ledger.choose import choose, make_command
from sparsebench.plan.expand import describe_calibration
from sparsebench.steps.calibration import DEFAULT, Calibration
from sparsebench.steps.registry import single


@pytest.mark.parametrize(
    ("source", "field", "option"),
    [
        (DEFAULT.source, "passage", "length: 64"),
        (DEFAULT.source, "question", "field: question, length: 64"),
        ("path:/my data/x.jsonl", None, "source: 'path:/my data/x.jsonl', length: 64"),
        ("path:/my data/x.jsonl", "text", "source: 'path:/my data/x.jsonl', field: text, length: 64"),
        ("path:x.csv", "my column", "source: 'path:x.csv', field: my column, length: 64"),
        ("path:it's.csv", None, "source: 'path:it''s.csv', length: 64"),
    ],
)
def test_a_text_of_any_name_is_named(source: str, field: str | None, option: str) -> None:
    described = describe_calibration(Calibration(source, DEFAULT.samples, 64, 0, field))
    row = {"variant_id": "v", "source": "path:m", "model": "m", "recipe": "r", "seed": 0, "dtype": "auto"}
    words = shlex.split(make_command({**row, "calibration": described}, []))
    assert words[words.index("--calibration") + 1] == option


@pytest.mark.parametrize(
    ("source", "field", "expected"),
    [
        ("path:q.jsonl", "doc.passage", "source: 'path:q.jsonl', field: doc.passage"),
        ("path:my q.jsonl.gz", "doc.passage", "source: 'path:my q.jsonl.gz', field: doc.passage"),
        ("path:my notes.md", None, "source: 'path:my notes.md'"),
        ("path:notes.md", "text", "source: 'path:notes.md', field: text"),
    ],
)
def test_a_nested_column_is_no_part_of_the_source(source: str, field: str | None, expected: str) -> None:
    described = describe_calibration(Calibration(source, DEFAULT.samples, 64, 0, field))
    row = {"variant_id": "v", "source": "path:m", "model": "m", "recipe": "r", "seed": 0, "dtype": "auto"}
    words = shlex.split(make_command({**row, "calibration": described}, []))
    assert words[words.index("--calibration") + 1] == f"{expected}, length: 64"


def test_what_else_decides_the_weights_is_named(tmp_path: Path) -> None:
    row = {"variant_id": "v", "source": "path:m", "model": "m", "recipe": "r", "seed": 0, "dtype": "auto"}
    teachers = ["dense", f"path:{tmp_path}/t#content={'0' * 20}"]
    words = shlex.split(
        make_command({**row, "calibration": ""}, [single("recover", "distill", teacher=teachers)], "float32")
    )
    assert words[words.index("--compute-dtype") + 1] == "float32" and f"path:{tmp_path}/t" in " ".join(words)
    assert "#content" not in " ".join(words)
    unquoted = shlex.split(make_command({**row, "calibration": "path:it's.csv text 128×64 seed 0"}, []))
    assert unquoted[-1] == "source: 'path:it''s.csv', field: text, length: 64"


def test_the_command_that_exports_names_a_ledger_that_is_not_the_default(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = choose(ledger, "smol", loss=100.0)
    words = next(shlex.split(row["export"]) for row in rows if row["export"])
    assert words[words.index("--ledger") + 1] == str(ledger)
    monkeypatch.setenv("SPARSEBENCH_LEDGER", str(ledger))
    assert not [row for row in choose(ledger, "smol", loss=100.0) if "--ledger" in (row["export"] or "")]
