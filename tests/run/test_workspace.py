"""Runs that share a work folder leave each other's variants alone, and remove what dead ones left."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from sparsebench import leftovers
from sparsebench.plan.cells import Variant
from sparsebench.run.workspace import Leases, Workspace, exclusive, running_process
from sparsebench.steps.registry import single
from sparsebench.storage import sums

DENSE = Variant("0" * 20, "m", "decoder", "path:m", "r", "real", "float32")
STEP = single("prune", "magnitude", sparsity=0.5)
PRUNED = replace(DENSE, id="1" * 20, steps=(STEP,), parents=(DENSE.id,))
HOLDER = """
import pickle, sys
from sparsebench.run.workspace import Leases
with Leases(*pickle.load(sys.stdin.buffer)):
    print("leased", flush=True)
    import time; time.sleep(600)
"""


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A work folder with both models in it."""
    made = Workspace.of(tmp_path / "ledger" / "a.duckdb", tmp_path / "work")
    for variant in (DENSE, PRUNED):
        made.folder(variant).mkdir(parents=True)
        (made.folder(variant) / "config.json").touch()
    return made


def test_a_folder_stays_while_another_run_leases_it_and_no_longer(space: Workspace) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin and holder.stdout
    pickle.dump((space, [DENSE, PRUNED]), holder.stdin)
    holder.stdin.close()
    assert holder.stdout.readline() == b"leased\n"
    with Leases(space, [DENSE, PRUNED]) as ours:
        ours.release(PRUNED)
    assert space.present(PRUNED)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with Leases(space, [DENSE, PRUNED]) as ours:
        ours.release(DENSE)
        ours.release(PRUNED)
    assert space.present(DENSE) and not space.folder(PRUNED).exists()
    assert [path.name for path in (space.work / "variants").iterdir()] == []


def test_what_dead_processes_left_half_done_is_swept_and_what_living_ones_make_is_not(
    space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ended, ours = (f".partial-{socket.gethostname()}-{pid}" for pid in (dead.pid, os.getpid()))
    left = [space.work / "variants" / f"{name}{ended}" for name in (PRUNED.id, ".activations")]
    left.append(space.work / "training" / f"{PRUNED.id}{ended}")
    made = space.work / "variants" / f"{PRUNED.id}{ours}"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    theirs = tmp_path / f"{leftovers.ours()}{dead.pid}-x"
    elsewhere = tmp_path / f"sparsebench-another-{dead.pid}-x"
    half, whole = space.records / f".{'2' * 20}.done.json.{dead.pid}123456", space.records / f"{'2' * 20}.done.json"
    with leftovers.temporary() as living:
        for folder in (*left, made, theirs, elsewhere, space.records):
            folder.mkdir(parents=True)
        half.touch()
        os.utime(half, (0, 0))
        whole.touch()
        space.sweep()
        assert (
            made.is_dir() and Path(living).is_dir() and elsewhere.is_dir() and whole.exists() and space.present(PRUNED)
        )
    assert not any(path.exists() for path in (*left, theirs, half))


def test_a_half_written_list_of_checksums_is_removed_once_its_writer_is_dead(space: Workspace) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    beside = sums.beside(space.folder(PRUNED))
    beside.parent.mkdir(parents=True, exist_ok=True)
    left, fresh, living = (
        beside.with_name(f".{beside.name}.{pid}{drawn}")
        for pid, drawn in ((dead.pid, "000001"), (dead.pid, "000002"), (os.getpid(), "000003"))
    )
    for partial in (beside, left, fresh, living):
        partial.touch()
    for partial in (left, living):
        os.utime(partial, (0, 0))
    space.sweep()
    assert not left.exists() and fresh.exists() and living.exists() and beside.exists()


def test_a_model_that_was_left_without_its_checksum_gets_it_unless_it_is_damaged(space: Workspace) -> None:
    folder = space.folder(DENSE)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    sums.write(folder)
    weights.write_bytes(b"weighty")
    space.seal_missing([DENSE])
    assert not space.content(DENSE), "the worker that opens it is to find this"
    weights.write_bytes(b"weights")
    space.seal_missing([DENSE, PRUNED])
    assert space.content(DENSE) == sums.checksum(folder) and space.damage(DENSE) is None


def test_who_runs_on_a_ledger_is_known_while_it_does(space: Workspace) -> None:
    assert running_process(space.ledger) is None
    with exclusive(space.ledger):
        assert running_process(space.ledger) == os.getpid()
    assert running_process(space.ledger) is None, "the file still names us"
