"""Trainings killed while they write a file: they are resumed to the same model, bit for bit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from sparsebench import environment
from sparsebench.errors import ModelError
from sparsebench.steps.recover import resume
from tests.adversarial.trainings import SCENARIOS, STATE, Case, killed_trainings, small  # noqa: F401

ROOT = Path(__file__).parents[2]
KILLED = [
    (name, number, point)
    for name, number in (("distill", 2), ("distill", 9), ("reconstruct", 1))
    for point in ("within", "before", "after")
]
"""Trainings killed while they write a file: its number, and whether within its bytes, or before or after it has its name."""


class Dying:
    """A file whose second piece is written by half."""

    def __init__(self, file: Any) -> None:
        self.file, self.pieces = file, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> None:
        """Write it, or half of it and die."""
        self.pieces += 1
        self.file.write(data[: len(data) // self.pieces])
        if self.pieces == 2:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)


def die(case: Case, number: int, point: str, kept: str) -> None:
    """Train, and die at that file."""
    patch, files, create, sync = pytest.MonkeyPatch(), [0], resume.create, os.fsync
    small(patch)

    def created(path: Path, mode: str) -> Any:
        files[0] += 1
        return Dying(create(path, mode)) if (files[0], point) == (number, "within") else create(path, mode)

    def synced(file: int) -> None:
        sync(file)
        if files[0] == number and point == ("after" if Path(f"/proc/self/fd/{file}").is_dir() else "before"):
            os.kill(os.getpid(), signal.SIGKILL)

    patch.setattr(resume, "create", created)
    patch.setattr(os, "fsync", synced)
    case.go("lost", kept)


def main(folders: dict[str, str]) -> None:
    """Die in a process of its own at each of KILLED; what they import is imported once."""
    torch.set_num_threads(1)
    for name, folder in folders.items():
        Case.of(name, Path(folder)).go("first", None)
    for name, number, point in KILLED:
        if not (process := os.fork()):
            try:
                die(Case.of(name, Path(folders[name])), number, point, f"{number}-{point}")
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL, (name, number, point)


@pytest.fixture(scope="module")
def deaths(cases: Callable[[str], Case]) -> None:
    folders = {name: str(cases(name).folder) for name, *_ in KILLED}
    code = f"from {__name__} import main; main({folders!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.long
@pytest.mark.parametrize(("name", "number", "point"), KILLED)
def test_a_kill_during_a_write(name: str, number: int, point: str, cases: Callable[[str], Case], deaths: None) -> None:
    case = cases(name)
    case.notes.clear()
    (case.folder / f"{number}-{point}").rename(case.folder / "r")
    case.resumed()
    assert not case.notes


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_a_killed_training_left_is_used_without_a_word(name: str, cases: Callable[[str], Case]) -> None:
    case, steps = cases(name), list[int]()
    case.left()
    evidence = case.resumed(progress=lambda done, total, words="": steps.append(done) if "loss" in words else None)
    assert evidence.note == case.whole.note and not case.notes
    assert steps[:1] == ([] if name == "reconstruct" else [4])


def test_a_full_disk_is_an_error_of_the_step(cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases("finetune")
    path = case.left()
    before = (path / STATE).read_bytes()
    monkeypatch.setattr(environment, "free_disk", lambda path: 1000)
    error = case.go("out-of-room", "r")
    assert isinstance(error, ModelError) and str(path) in error.message and error.hint
    assert (path / STATE).read_bytes() == before and len(list(path.iterdir())) == 1
