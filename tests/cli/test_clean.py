"""What ``clean`` takes for removable, what it removes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sparsebench import leftovers
from sparsebench.cli import app
from sparsebench.manifest.schema import Manifest, ManifestModel
from sparsebench.models import building
from sparsebench.plan.expand import expand
from sparsebench.run.workspace import Leases, Workspace
from sparsebench.storage import sums


@pytest.fixture
def dead() -> int:
    """The number of a process that was."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def clean(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, int]:
    """Runs the verb; what it names, with its bytes."""
    monkeypatch.setattr(sys, "argv", ["sparsebench", "clean", "--json", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 0
    return {row["path"]: row["bytes"] for row in json.loads(capsys.readouterr().out)["paths"]}


def test_what_can_go_goes_and_what_is_used_stays(
    dead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    work = tmp_path / "work"
    model = ManifestModel(name="m", source="path:m", family="decoder")
    plan = expand(Manifest(version=1, models=[model]), "x", {"m": "1"})
    used = plan.dense["m"]
    mine = tmp_path / "tmp" / f"{leftovers.ours()}{os.getpid()}-a"
    ranks = tmp_path / "tmp" / f"{leftovers.ours()}{dead}-a"
    partial = work / "variants" / f"{'2' * 20}{building._ours()}{dead}"
    free = [work / "models" / ("1" * 20), work / "packed" / ("1" * 20)]
    held = work / "models" / used.id
    stays = [mine, held, tmp_path / "sources"]
    for folder in (*stays, ranks, partial, *free):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 5000)
    sums.write(free[0])
    with Leases(Workspace.of(tmp_path / "l.duckdb", work), [used]):
        # A lock of one's own process is none to it: ask from another.
        command = [sys.executable, "-m", "sparsebench", "clean", "--json", "--work", str(work)]
        seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert str(held) not in [row["path"] for row in seen["paths"]]
    found = clean(capsys, monkeypatch, "--work", str(work), "--only", "leftovers", "--only", "packed")
    assert sorted(found) == sorted(map(str, [ranks, partial, free[1]])) and min(found.values()) >= 5000
    assert all(folder.exists() for folder in (*stays, ranks, partial, *free)), "shown, not removed"
    clean(capsys, monkeypatch, "--work", str(work), "--only", "leftovers", "--only", "packed", "--yes")
    assert not ranks.exists() and not partial.exists() and not free[1].exists() and free[0].exists()
    clean(capsys, monkeypatch, "--work", str(work), "--yes")
    assert not free[0].exists() and not sums.beside(free[0]).exists()
    assert mine.exists() and (tmp_path / "sources").exists()
