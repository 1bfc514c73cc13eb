"""What lies in the cache and is not what it was is made again: no number comes from damaged weights."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparsebench import provenance
from sparsebench.ledger import query
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.storage import pack, sums, unpack
from tests.command import call, succeed
from tests.run.conftest import Experiment


def flip(path: Path) -> None:
    """One bit, in the middle; size and name stay."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """The last byte goes."""
    path.write_bytes(path.read_bytes()[:-1])


def rows(ledger: Path) -> list[tuple[object, ...]]:
    """What was measured, without times."""
    sql = "select distinct cell_id, status, content from base.records where stage in ('structure', 'storage') order by all"
    return list(query.run(ledger, sql).rows)


def weights(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.safetensors*") if path.is_file())


@pytest.mark.parametrize("harm", [flip, cut])
def test_a_damaged_folder_is_found_and_named(harm: Callable[[Path], None], tiny_llama: Path, tmp_path: Path) -> None:
    pack(tiny_llama, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "folder")
    for folder in (tmp_path / "packed", tmp_path / "folder"):
        assert sums.damage(folder) is None, "nothing is known of it"
        sums.write_checksums(folder)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            before = path.read_bytes()
            harm(path)
            found = sums.damage(folder)
            assert found and str(path) in found
            path.write_bytes(before)
            assert sums.damage(folder) is None
        (folder / "more").write_text("")
        assert "more was added" in str(sums.damage(folder))
        shutil.rmtree(folder)
        assert str(folder) in str(sums.damage(folder)), "another job removed it while this one looked"


def test_what_is_damaged_is_made_again(manifest: Path, tmp_path: Path) -> None:
    """A prepared model with a flipped bit, and a packed copy that was cut."""
    ledger = tmp_path / "ledger" / "test.duckdb"
    succeed("run", manifest, "--only", "stage=storage")
    before = rows(ledger)
    (model,) = weights(tmp_path / "work" / "models")
    good = model.read_bytes()
    packed = sorted(weights(tmp_path / "work" / "packed"))
    assert len(packed) == 2
    flip(model)
    cut(packed[0])
    manifest.write_text(manifest.read_text() + "storage: {formats: [dense, packed, archive]}\n")
    again = succeed("run", manifest, "--only", "stage=storage")
    assert f"{model}" in again.stderr and packed[0].name in again.stderr and again.stderr.count("made again") == 2
    assert model.read_bytes() == good
    after = rows(ledger)
    assert {row[1:] for row in after} == {row[1:] for row in before} and {row[1] for row in after} == {"done"}


@pytest.mark.long
def test_a_source_that_is_damaged_too_is_told(tiny_llama: Path, manifest: Path, tmp_path: Path) -> None:
    """What is made again has other weights: no cell is done with them."""
    succeed("run", manifest, "--only", "method=dense")
    (model,) = weights(tmp_path / "work" / "models")
    folder = model.parent
    notes = json.loads((folder / "sparsebench.json").read_text())
    (folder / "sparsebench.json").write_text(json.dumps({**notes, "content": "00000000-1"}))
    again = call("run", manifest)
    assert again.returncode == 1
    assert "damaged" in again.stderr and not folder.exists()


@pytest.mark.long
def test_weights_that_are_made_again_otherwise_than_recorded_are_told(manifest: Path, tmp_path: Path) -> None:
    """As on another processor, which rounds differently; the ledger then shows the results of the first weights alone."""
    succeed("run", manifest, "--only", "stage=make", "--only", "sparsity=0.5")
    (made,) = [path for path in (tmp_path / "ledger").rglob("*.done.json") if '"stage":"make"' in path.read_text()]
    record = {**json.loads(made.read_text()), "content": "00000000-1"}
    made.write_text(json.dumps(provenance.sealed(record), separators=(",", ":")))
    shutil.rmtree(tmp_path / "work")
    again = succeed("run", manifest)
    (told,) = [line for line in again.stderr.splitlines() if "made again" in line]
    assert "50%" in told


def test_one_model_without_a_manifest(tiny_llama: Path) -> None:
    first = call("inspect", tiny_llama, "--json")
    (model,) = weights(Path(os.environ["SPARSEBENCH_CACHE"]) / "work" / "models")
    assert sums.noted_checksum(model.parent) == sums.weights_checksum(model.parent), "a run in this cache records it"
    flip(model)
    second = call("inspect", tiny_llama, "--json")
    assert first.stdout == second.stdout and second.returncode == 0
    assert str(model) in second.stderr and "made again" in second.stderr and "made again" not in first.stderr


TRAINED = """\
calibration: {source: path:text.txt, samples: 8, length: 16}
variants:
  - {recover: finetune, tokens: 200, length: 16}
structure: {}
storage: null
"""


@pytest.mark.long
def test_a_damaged_state_of_a_training_is_told_and_recorded(experiment: Experiment) -> None:
    manifest = experiment.write(TRAINED)
    (trained,) = (one for one in prepare(PlanRequest(manifest)).plan.variants.values() if not one.is_dense)
    state = experiment.home / "work" / "training" / trained.id / "training.safetensors"
    state.parent.mkdir(parents=True)
    state.write_bytes(bytes(1000))
    done = succeed("run", manifest)
    assert str(state) in done.stderr and not state.parent.exists()
    assert experiment.rows("SELECT count(*) FROM variants WHERE note LIKE '%training.safetensors%'") == [(1,)]
