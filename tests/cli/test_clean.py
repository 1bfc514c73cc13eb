"""What ``clean`` takes for removable, what it removes, and what it leaves alone."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sparsebench.manifest.schema import Manifest, ManifestModel
from sparsebench.paths import PARTIAL, leftovers
from sparsebench.plan.expand import expand
from sparsebench.run.workspace import Leases, Workspace
from sparsebench.storage import sums
from tests.command import call, succeed

MARK = f"{PARTIAL}{socket.gethostname()}+"


@pytest.fixture
def dead() -> int:
    """The number of a process that was."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def clean(*words: object) -> dict[str, int]:
    """Runs the verb; what it names, with its bytes."""
    done = succeed("clean", "--json", *words)
    return {row["path"]: row["bytes"] for row in json.loads(done.stdout)["paths"]}


def test_what_can_go_goes_and_what_is_used_stays(dead: int, tmp_path: Path) -> None:
    work = tmp_path / "work"
    model = ManifestModel(name="m", source="path:m", family="decoder")
    plan = expand(Manifest(version=1, models=[model]), "x", {"m": "1"})
    used = plan.dense["m"]
    mine = tmp_path / "tmp" / f"sparsebench{MARK}{os.getpid()}-a"
    ranks = tmp_path / "tmp" / f"sparsebench{MARK}{dead}-a"
    partial = work / "variants" / f"{'2' * 20}{MARK}{dead}"
    free = [work / "models" / ("1" * 20), work / "packed" / ("1" * 20)]
    held = work / "models" / used.id
    stays = [mine, held, tmp_path / "sources"]
    for folder in (*stays, ranks, partial, *free):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 5000)
    sums.write_checksums(free[0])
    with Leases(Workspace.of(tmp_path / "l.duckdb", work), [used]):
        # A lock of one's own process is none to it: ask from another.
        command = [sys.executable, "-m", "sparsebench", "clean", "--json", "--work", str(work)]
        seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert str(held) not in [row["path"] for row in seen["paths"]]
    found = clean("--work", work, "--only", "leftovers", "--only", "packed")
    assert sorted(found) == sorted(map(str, [ranks, partial, free[1]])) and min(found.values()) >= 5000
    assert all(folder.exists() for folder in (*stays, ranks, partial, *free)), "shown, not removed"
    clean("--work", work, "--only", "leftovers", "--only", "packed", "--yes")
    assert not ranks.exists() and not partial.exists() and not free[1].exists() and free[0].exists()
    clean("--work", work, "--yes")
    assert not free[0].exists() and not sums.checksum_file(free[0]).exists()
    assert mine.exists() and (tmp_path / "sources").exists()


def test_files_count_their_bytes_and_links_go_alone(dead: int, tmp_path: Path) -> None:
    file, link = (tmp_path / "variants" / f"{name}{MARK}{dead}-1a2b3c" for name in "ab")
    target = tmp_path / "target"
    for folder in (file.parent, target):
        folder.mkdir()
    file.write_bytes(b"x" * 5000)
    link.symlink_to(target)
    found = clean("--work", tmp_path, "--yes")
    assert sorted(found) == [str(file), str(link)] and found[str(file)] >= 5000
    assert not file.exists() and not link.is_symlink() and target.is_dir()


def test_what_another_machine_left_stays(dead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node")
    ours = [tmp_path / f"x.partial-node+{dead}", tmp_path / f"sparsebench.partial-node+{dead}-a_1"]
    theirs = [tmp_path / f"x.partial-node-{dead}+{dead}", tmp_path / f"sparsebench.partial-node-{dead}+77-a_1"]
    for folder in (*ours, *theirs):
        folder.mkdir()
    assert sorted(leftovers(tmp_path)) == sorted(ours) and [*leftovers(tmp_path, "x")] == ours[:1]


def test_the_command_that_removes_names_the_same(dead: int, tmp_path: Path) -> None:
    work = tmp_path / "my work"
    left, model = work / "variants" / f"a{MARK}{dead}", work / "models" / ("1" * 20)
    for folder in (left, model):
        folder.mkdir(parents=True)
    shown = call("clean", "--only", "leftovers", "--work", work)
    again = shlex.split(shown.stderr.replace("\n", " ").partition("remove it: ")[2])
    assert again == ["sparsebench", "clean", "--only", "leftovers", "--work", str(work), "--yes"]
    succeed(*again[1:])
    assert model.exists() and not left.exists()


def test_what_cannot_be_removed_stays_alone(dead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, gone, free = (tmp_path / "variants" / f"{name}{MARK}{dead}" for name in "abc")
    for folder in (held, gone, free):
        folder.mkdir(parents=True)
    real = shutil.rmtree

    def refused(path: Path, **more: Any) -> None:
        if path in (held, gone):
            raise (PermissionError if path == held else FileNotFoundError)(13, "no", str(path))
        real(path, **more)

    monkeypatch.setattr(shutil, "rmtree", refused)
    done = call("clean", "--work", tmp_path, "--yes")
    assert done.returncode == 1 and held.name in done.stderr.replace("\n", "") and not free.exists()
    assert done.stdout.count(".partial-") == 1, "what another process removed was not removed here"
