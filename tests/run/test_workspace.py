"""Runs that share a work folder leave each other's variants alone, and remove what dead ones left."""

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

from sparsebench import paths
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
    assert space.present(DENSE) and not [*(space.work / "variants").iterdir()]


def test_what_dead_processes_left_half_done_is_swept_and_what_living_ones_make_is_not(
    space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ended, ours = (f".partial-{socket.gethostname()}+{pid}" for pid in (dead.pid, os.getpid()))
    left = [space.work / "variants" / f"{name}{ended}" for name in (PRUNED.id, ".activations")]
    left += [space.work / "training" / f"{PRUNED.id}{ended}", tmp_path / f"sparsebench{ended}-a_1"]
    made = space.work / "variants" / f"{PRUNED.id}{ours}"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elsewhere = tmp_path / f"sparsebench.partial-another+{dead.pid}-x"
    whole = space.records / f"{'2' * 20}.done.json"
    sealed = sums.checksum_file(space.folder(PRUNED))
    half, sealing = (path.with_name(f"{path.name}{ended}-1a2b3c") for path in (whole, sealed))
    living = sealed.with_name(f"{sealed.name}{ours}-1a2b3c")
    with paths.temporary_folder() as temporary:
        for folder in (*left, made, elsewhere, space.records):
            folder.mkdir(parents=True)
        for file in (half, whole, sealed, sealing, living):
            file.touch()
        space.sweep()
        assert all(path.exists() for path in (made, Path(temporary), elsewhere, whole, sealed, living))
        assert space.present(PRUNED)
    assert not any(path.exists() for path in (*left, half, sealing))


def test_who_runs_on_a_ledger_is_known_while_it_does(space: Workspace) -> None:
    assert running_process(space.ledger) is None
    with exclusive(space.ledger):
        assert running_process(space.ledger) == os.getpid()
    assert running_process(space.ledger) is None, "the file still names us"
