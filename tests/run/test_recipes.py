"""From manifest to ledger and report: chains, a setting that fails alone, data of one's own, smaller shapes."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.topology import parts
from tests.command import call, succeed
from tests.run.conftest import CALIBRATION, OWN, Experiment
from tests.steps.trim.tiny import LEARNED, TEXT, llama

REST = """\
variants:
  - - {prune: magnitude, sparsity: [0.5, 0.9]}
    - {quantize: int8}
  - - {prune: magnitude, sparsity: 0.5}
    - {quantize: int4, group: 16, rounding: gptq}
structure: null
outputs: {samples: 2, length: 16}
storage: {formats: [dense], keep: none}
"""


def test_a_recipe_from_manifest_to_ledger(experiment: Experiment) -> None:
    succeed("run", experiment.write(CALIBRATION + REST))
    rows = experiment.rows
    assert rows("SELECT recipe, stage, status FROM cells WHERE status <> 'done'") == []
    found = {row[0]: row[1:] for row in rows("SELECT recipe, zeros / prunable, bits, rounded_to_zero FROM variants")}
    assert found["magnitude/layer 50%"][:2] == (pytest.approx(0.5), None)
    zeros, bits, rounded = found["magnitude/layer 90%, then int8"]
    ((prunable,),) = rows("SELECT max(prunable) FROM variants")
    assert zeros >= 0.9 and 8 < bits < 10 and zeros == pytest.approx(0.9 + rounded / prunable, abs=1e-3)
    assert 4 < found["magnitude/layer 50%, then int4 rounding=gptq group=16"][1] < 8
    # Of the dense model nobody asks how far it is from itself; of each variant both blocks are compared.
    compared = rows("SELECT recipe, count(*), min(own), max(error) FROM outputs GROUP BY ALL")
    errors: dict[Any, Any] = {row[0]: row[1:] for row in compared}
    four_bits = "magnitude/layer 50%, then int4 rounding=gptq group=16"
    assert set(errors) == {"magnitude/layer 50%, then int8", "magnitude/layer 90%, then int8", four_bits}
    assert all(count == 2 and own > 0 for count, own, _ in errors.values())
    assert errors["magnitude/layer 90%, then int8"][2] > errors["magnitude/layer 50%, then int8"][2]
    # The prefix is made once, and only what an entry ends with is measured.
    making = rows("SELECT recipe FROM cells WHERE stage = 'make'")
    assert len(making) == len(set(making)) == 5
    assert {("dense",), ("magnitude/layer 50%, then int8",)} <= {*rows("SELECT DISTINCT recipe FROM results")}
    assert {("rounding",), ("group",)} <= {*rows("SELECT field FROM steps WHERE step = 'quantize'")}
    joined = "variants v JOIN variants p ON p.variant_id = v.parent WHERE v.recipe LIKE '%90%, then int8'"
    assert rows(f"SELECT p.recipe FROM {joined}") == [("magnitude/layer 90%",)]
    names = ("tiny/magnitude/0.9/int8", "tiny/magnitude/0.5/int8")
    pair = json.loads(call("compare", *names, "--json", "--ledger", experiment.ledger).stdout)
    told = [pair[side]["recipe"] for side in "ab"]
    assert told == ["magnitude/layer 90%, then int8", "magnitude/layer 50%, then int8"]
    assert [row["format"] for row in pair["sizes"]] == ["dense"]


MASKS = """\
variants:
  - - {prune: mask, file: quarter.safetensors}
    - {prune: magnitude, sparsity: 0.5, keep_zeros: true}
  - {prune: mask, file: quarter.safetensors}
  - - {prune: magnitude, sparsity: 0.5}
    - {prune: magnitude, sparsity: 0.5, keep_zeros: true}
structure: null
storage: {formats: [dense], keep: none}
"""


@pytest.mark.long
def test_masks_and_zeros_that_stay_from_manifest_to_ledger(experiment: Experiment) -> None:
    """The share of zeros of masks is the one that they gave; zeros that were there are told from those that a step made."""
    dense, rows = Checkpoint(experiment.model), experiment.rows
    names = [name for name, part in parts(dense, "decoder").items() if part.prunable]
    save_file({name: torch.arange(dense.load(name).numel()).view(dense.load(name).shape) % 4 > 0 for name in names},
              experiment.home / "quarter.safetensors")  # fmt: skip
    succeed("run", experiment.write(MASKS))
    found = rows("SELECT recipe, sparsity, achieved_sparsity FROM results WHERE method <> 'dense' ORDER BY ALL")
    wanted = {
        "magnitude/layer 50%": 0.5,
        "magnitude/layer 50%, then magnitude/layer 50% of what is left": 0.75,
        "mask quarter.safetensors": 0.25,
        "mask quarter.safetensors, then magnitude/layer 50% of what is left": 0.625,
    }
    assert {recipe: shares for recipe, *shares in found} == {
        recipe: [pytest.approx(share, abs=1e-3)] * 2 for recipe, share in wanted.items()
    }
    shares = rows("SELECT recipe, already_zero / prunable FROM variants WHERE parent IS NOT NULL ORDER BY ALL")
    assert [share for _, share in shares] == [pytest.approx(share, abs=1e-3) for share in (0, 0.5, 0, 0.25)]


RECOVER = """\
calibration: {source: path:text.txt, samples: 8, length: 16}
variants:
  - - {prune: magnitude, sparsity: 0.5}
    - {recover: reconstruct, epochs: 2, batch: 2, rate: 1e-3}
    - {quantize: int8}
structure: null
storage: {formats: [dense], keep: none}
"""


@pytest.mark.long
def test_recovery_reads_the_dense_model_beside_its_parent(experiment: Experiment) -> None:
    succeed("run", experiment.write(RECOVER))
    rows = experiment.rows
    recipe = "magnitude/layer 50%, then reconstruct epochs=2 batch=2 rate=0.001"
    ((zeros, note),) = rows(f"SELECT zeros / prunable, note FROM variants WHERE recipe = '{recipe}'")
    assert zeros == pytest.approx(0.5) and "in the first block" in str(note)
    # What it is made from and beside is made again where it is gone.
    shutil.rmtree(experiment.home / "work" / "models")
    succeed("run", experiment.write(RECOVER.replace("structure: null", "structure: {}")))
    assert rows(f"SELECT status FROM cells WHERE stage = 'structure' AND recipe = '{recipe}, then int8'") == [("done",)]


TAUGHT = """\
calibration: {source: path:text.txt, samples: 8, length: 16}
variants:
  - - {prune: magnitude, sparsity: 0.5}
    - {recover: distill, teacher: [dense, path:other], tokens: 500, length: 16}
  - {recover: distill, student: {layers: 1, hidden: 32, heads: 2}, match: hidden_mse, tokens: 500, length: 16}
structure: null
storage: {formats: [dense], keep: none}
"""


@pytest.mark.long
def test_other_teachers_and_smaller_students_from_manifest_to_ledger(experiment: Experiment) -> None:
    shutil.copytree(experiment.model, experiment.home / "other")
    succeed("run", experiment.write(TAUGHT))
    asked = (
        "SELECT recipe, trained_tokens >= 500, joules IS NULL = starts_with(energy_source, 'none'), note FROM variants"
    )
    found = {row[0]: row[1:] for row in experiment.rows(f"{asked} WHERE trained_tokens IS NOT NULL")}
    taught, into = sorted(found, key=lambda recipe: "into" in recipe)
    assert "taught by dense and other" in taught and "into layers=1 hidden=32 heads=2" in into
    assert all(row[:2] == (True, True) for row in found.values())
    assert "a student of" in found[into][2]
    assert experiment.rows("SELECT value FROM steps WHERE field = 'student' AND value IS NOT NULL")


MORE = """\
  - {floor: zero-weights}
  - {floor: heuristic}
structure: null
storage: null
benchmarks:
  decoder:
    - {task: perplexity, source: path:notes.txt, length: 32}
    - {task: choices, source: path:quiz.jsonl}
"""
ASKED = """
select task, sparsity, n, bits_per_byte is not null as bits, floor is not null as floor, verdict is not null as verdict
from results where task is not null order by task, sparsity
"""


@pytest.mark.long
def test_a_text_and_questions_of_ones_own(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the cat sat on the mat of a big red house\n" * 40)
    choices = {"choices": ["sat", "ran", "mat"]}
    records = [{"context": f"the cat {place}", **choices, "gold": place % 3} for place in range(12)]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, records)))
    manifest.write_text(manifest.read_text() + MORE)
    succeed("run", manifest)
    told = call("sql", "--ledger", tmp_path / "ledger" / "test.duckdb", "--format", "csv", ASKED)
    rows = list(csv.DictReader(io.StringIO(told.stdout)))
    told_of = {(row["task"], row["sparsity"]): (row["bits"], row["verdict"]) for row in rows}
    assert told_of == {
        (task, share): (str(task != "choices-quiz"), str(share != "0.0"))
        for task in ("choices-quiz", "perplexity-notes")
        for share in ("0.0", "0.5", "0.9")
    }
    assert {row["floor"] for row in rows} == {"True"}
    # The heuristic reads no model: nothing is made for it.
    asked = "select stage, label, status from cells where recipe = 'heuristic'"
    told = call("sql", "--ledger", tmp_path / "ledger" / "test.duckdb", "--format", "csv", asked)
    assert [*csv.reader(io.StringIO(told.stdout))][1:] == [["benchmarks", "choices-quiz", "done"]]
    assert {row["n"] for row in rows if row["task"] == "choices-quiz"} == {"12"}
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, records[:-1])))
    again = json.loads(call("plan", manifest, "--json").stdout)
    assert {row["what"] for row in again if row["runs"]} == {"choices-quiz"}


SHAPES = """\
storage: {formats: [dense], keep: none}
variants:
  - {shrink: l2, neurons: 24}
  - {trim: corpus}
  - - {shrink: last, blocks: 1}
    - {trim: corpus}
"""


@pytest.mark.long
def test_what_is_shrunk_and_trimmed_is_counted_and_reported(tmp_path: Path) -> None:
    own = "\n\n".join(f"{text} {number}" for number in range(20) for text in LEARNED)
    experiment = Experiment(tmp_path, llama(tmp_path / "model"), "\n\n".join(TEXT * 20), own)
    succeed("run", experiment.write(CALIBRATION + OWN + SHAPES))
    sql = """
        SELECT recipe, method_label(s.method, s.granularity, s.pattern) || way, parameters_removed, bytes
        FROM variants JOIN ways USING (variant_id) JOIN sizes s USING (variant_id) WHERE format = 'dense'"""
    asked = experiment.rows(sql)
    found = {str(recipe): (removed, size) for recipe, _, removed, size in asked}
    labels = {str(recipe): str(label) for recipe, label, _, _ in asked}
    succeed("report", "--ledger", experiment.ledger, "--out", tmp_path / "report.md")
    report = "".join(path.read_text() for path in tmp_path.glob("report*.md"))
    dense = found.pop("dense")
    assert len(found) == 3
    for recipe, (removed, size) in found.items():
        assert 0 < removed < 1 and size < dense[1], recipe
        assert labels[recipe] in report
    both = next(recipe for recipe in found if ", then " in recipe)
    assert found[both][0] > max(found[recipe][0] for recipe in found if recipe != both and "l2" not in recipe)
