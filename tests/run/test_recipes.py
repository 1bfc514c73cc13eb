"""Recipes from manifest to ledger: chains, quantization behind pruning, and a setting that fails alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebench.ledger import query

MANIFEST = """\
version: 1
ledger: {home}/ledger/test.duckdb
work_dir: {home}/work
models:
  - {{name: tiny, source: "path:{model}", family: decoder}}
calibration: {{source: "path:{home}/text.txt", samples: 4, length: 16}}
variants:
  - {{prune: magnitude, sparsity: 0.5}}
  - - {{prune: magnitude, sparsity: [0.5, 0.9]}}
    - {{quantize: int8}}
  - - {{prune: magnitude, sparsity: 0.5}}
    - {{quantize: int4, group: 16, rounding: gptq}}
    - {more}
  - {{prune: sparsegpt, sparsity: 0.5, bits: int8, propagate: pruned}}
structure: null
outputs: {{samples: 2, length: 16}}
storage: {{formats: [dense], keep: none}}
"""
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tiny_llama: Path, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("\n\n".join(f"some words {n} of a text" for n in range(200)))
    text = MANIFEST.format(home=tmp_path, model=tiny_llama, more="{quantize: int8}")
    (tmp_path / "chain.yaml").write_text(text)
    return tmp_path


def rows(home: Path, sql: str) -> list[tuple[object, ...]]:
    return list(query.run(home / "ledger" / "test.duckdb", sql).rows)


def test_a_recipe_from_manifest_to_ledger(home: Path, sparsebench: Call) -> None:
    done = sparsebench("run", home / "chain.yaml")
    # Quantizing what is quantized already fails, alone, and says so.
    assert done.returncode == 1, done.stderr
    assert rows(home, "SELECT recipe, stage, status FROM cells WHERE status <> 'done' ORDER BY ALL") == [
        ("magnitude/layer 50%, then int4 rounding=gptq group=16, then int8", "make", "failed"),
        ("magnitude/layer 50%, then int4 rounding=gptq group=16, then int8", "outputs", "skipped"),
        ("magnitude/layer 50%, then int4 rounding=gptq group=16, then int8", "storage", "skipped"),
    ]
    ((why,),) = rows(home, "SELECT reason FROM failures WHERE stage = 'make'")
    assert "quantized already (int4)" in str(why)
    found = {
        row[0]: row[1:] for row in rows(home, "SELECT recipe, zeros / prunable, bits, rounded_to_zero FROM variants")
    }
    assert found["magnitude/layer 50%"][:2] == (pytest.approx(0.5), None)
    zeros, bits, rounded = found["magnitude/layer 90%, then int8"]
    assert zeros >= 0.9 and 8 < bits < 10 and zeros == pytest.approx(0.9 + rounded / _prunable(home), abs=1e-3)
    assert 4 < found["magnitude/layer 50%, then int4 rounding=gptq group=16"][1] < 8
    assert found["sparsegpt/layer 50% bits=int8"][0] >= 0.5
    # Of the dense model nobody asks how far it is from itself; of each variant both blocks are compared.
    errors = {
        row[0]: row[1:] for row in rows(home, "SELECT recipe, count(*), min(own), max(error) FROM outputs GROUP BY ALL")
    }
    assert set(errors) == {
        "magnitude/layer 50%", "magnitude/layer 50%, then int8", "magnitude/layer 90%, then int8",
        "sparsegpt/layer 50% bits=int8",
    }  # fmt: skip
    assert all(count == 2 and own > 0 for count, own, _ in errors.values())
    assert errors["magnitude/layer 90%, then int8"][2] > errors["magnitude/layer 50%, then int8"][2]
    # The prefix is made once, and only what an entry ends with is measured.
    making = rows(home, "SELECT recipe FROM cells WHERE stage = 'make'")
    assert len(making) == len(set(making)) == 7
    assert {name for (name,) in rows(home, "SELECT DISTINCT recipe FROM results")} >= {
        "dense",
        "magnitude/layer 50%, then int8",
    }
    assert {(step, field) for step, field in rows(home, "SELECT step, field FROM steps") if step == "quantize"} >= {
        ("quantize", "rounding"), ("quantize", "group"),
    }  # fmt: skip
    parents = rows(
        home,
        "SELECT p.recipe FROM variants v JOIN variants p ON p.variant_id = v.parent WHERE v.recipe LIKE '%90%, then int8'",
    )
    assert parents == [("magnitude/layer 90%",)]
    compared = sparsebench(
        "compare",
        "tiny/magnitude/0.9/int8",
        "tiny/sparsegpt/int8",
        "--json",
        "--ledger",
        home / "ledger" / "test.duckdb",
    )
    assert compared.returncode == 0, compared.stderr
    pair = json.loads(compared.stdout)
    assert (pair["a"]["recipe"], pair["b"]["recipe"]) == (
        "magnitude/layer 90%, then int8",
        "sparsegpt/layer 50% bits=int8",
    )
    assert [row["format"] for row in pair["sizes"]] == ["dense"]


def _prunable(home: Path) -> int:
    ((found,),) = rows(home, "SELECT max(prunable) FROM variants")
    assert isinstance(found, int)
    return found


@pytest.mark.long
def test_variants_of_another_making_do_not_mix(home: Path, sparsebench: Call) -> None:
    """A record of other weights under the same id stands in the ledger, and in no view."""
    assert sparsebench("run", home / "chain.yaml").returncode == 1
    before = rows(home, "SELECT variant_id, format, bytes FROM sizes ORDER BY ALL")
    record = next(
        json.loads(path.read_text())
        for path in (home / "ledger" / "records").glob("*.done.json")
        if '"stage":"storage"' in path.read_text() and '"steps":[{' in path.read_text()
    )
    assert record["content"]
    other = json.loads(json.dumps(record).replace(record["content"], "0badc0de-1"))
    other["started_at"] = "2099-01-01T00:00:00.000+00:00"
    for size in other["result"]["sizes"]:
        size["bytes"] = 1
    folder = home / "theirs"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(other))
    assert sparsebench("ingest", folder, "--ledger", home / "ledger" / "test.duckdb").returncode == 0
    assert rows(home, "SELECT variant_id, format, bytes FROM sizes ORDER BY ALL") == before


@pytest.mark.long
def test_masks_and_zeros_that_stay_from_manifest_to_ledger(tiny_llama: Path, tmp_path: Path, sparsebench: Call) -> None:
    """The share of zeros of masks is the one that they gave; zeros that were there are told from those that a step made."""
    import torch
    from safetensors.torch import save_file

    from sparsebench.models.checkpoint import Checkpoint
    from sparsebench.models.topology import parts

    dense = Checkpoint(tiny_llama)
    names = [name for name, part in parts(dense, "decoder").items() if part.prunable]
    save_file({name: torch.arange(dense.load(name).numel()).view(dense.load(name).shape) % 4 > 0 for name in names},
              tmp_path / "quarter.safetensors")  # fmt: skip
    head, _, rest = MANIFEST.format(home=tmp_path, model=tiny_llama, more="").partition("calibration:")
    text = f"""{head}variants:
  - - {{prune: mask, file: quarter.safetensors}}
    - {{prune: magnitude, sparsity: 0.5, keep_zeros: true}}
  - {{prune: mask, file: quarter.safetensors}}
  - - {{prune: magnitude, sparsity: 0.5}}
    - {{prune: magnitude, sparsity: 0.5, keep_zeros: true}}
structure: null
{rest[rest.index("storage:") :]}"""
    (tmp_path / "masks.yaml").write_text(text)
    (tmp_path / "else").mkdir()
    done = sparsebench("run", tmp_path / "masks.yaml")
    assert done.returncode == 0, done.stderr
    found = rows(
        tmp_path, "SELECT recipe, sparsity, achieved_sparsity FROM results WHERE method <> 'dense' ORDER BY ALL"
    )
    assert [
        (recipe, pytest.approx(share, abs=1e-3), pytest.approx(given, abs=1e-3)) for recipe, share, given in found
    ] == [
        ("magnitude/layer 50%", 0.5, 0.5),
        ("magnitude/layer 50%, then magnitude/layer 50% of what is left", 0.75, 0.75),
        ("mask quarter.safetensors", 0.25, 0.25),
        ("mask quarter.safetensors, then magnitude/layer 50% of what is left", 0.625, 0.625),
    ]
    shares = rows(
        tmp_path, "SELECT recipe, already_zero / prunable FROM variants WHERE parent IS NOT NULL ORDER BY ALL"
    )
    assert [share for _, share in shares] == [pytest.approx(share, abs=1e-3) for share in (0, 0.5, 0, 0.25)]


RECOVER = """\
version: 1
ledger: {home}/ledger/test.duckdb
work_dir: {home}/work
models:
  - {{name: tiny, source: "path:{model}", family: decoder}}
calibration: {{source: "path:{home}/text.txt", samples: 8, length: 16}}
variants:
  - - {{prune: magnitude, sparsity: 0.5}}
    - {{recover: reconstruct, epochs: 2, batch: 2, rate: 1e-3}}
    - {{quantize: int8}}
structure: {structure}
storage: {{formats: [dense], keep: none}}
"""


@pytest.mark.long
def test_recovery_reads_the_dense_model_beside_its_parent(home: Path, tiny_llama: Path, sparsebench: Call) -> None:
    manifest = home / "recover.yaml"
    manifest.write_text(RECOVER.format(home=home, model=tiny_llama, structure="null"))
    done = sparsebench("run", manifest)
    assert done.returncode == 0, done.stderr
    recipe = "magnitude/layer 50%, then reconstruct epochs=2 batch=2 rate=0.001"
    ((zeros, note),) = rows(home, f"SELECT zeros / prunable, note FROM variants WHERE recipe = '{recipe}'")
    assert zeros == pytest.approx(0.5) and "in the first block" in str(note)
    # What it is made from and beside is made again where it is gone.
    shutil.rmtree(home / "work" / "models")
    manifest.write_text(RECOVER.format(home=home, model=tiny_llama, structure="{}"))
    done = sparsebench("run", manifest)
    assert done.returncode == 0, done.stderr
    assert rows(home, f"SELECT status FROM cells WHERE stage = 'structure' AND recipe = '{recipe}, then int8'") == [
        ("done",)
    ]
