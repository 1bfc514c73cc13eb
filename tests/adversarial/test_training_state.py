"""Damaged files of a killed training: the training ends in the same model, bit for bit, and a note names the file."""

import math
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench import environment
from sparsebench.steps.recover import resume
from tests.adversarial.trainings import STATE, Case, killed_trainings  # noqa: F401

Damage = Callable[[Path, Case, pytest.MonkeyPatch], None]


def bytes_changed(change: Callable[[bytes], bytes]) -> Damage:
    """The file has other bytes."""

    def damage(path: Path, case: Case, patch: pytest.MonkeyPatch) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def replaced(make: Callable[[Path], object]) -> Damage:
    """Something else has the file's name."""

    def damage(path: Path, case: Case, patch: pytest.MonkeyPatch) -> None:
        path.unlink()
        make(path)

    return damage


def flattened(data: bytes) -> bytes:
    """The first tensor of several dimensions has one, as valid as before."""
    shape = re.search(rb'"shape":\[(\d+(,\d+)+)\]', data)
    assert shape
    size = math.prod(map(int, shape[1].split(b",")))
    return data[: shape.start(1)] + str(size).encode().ljust(len(shape[1])) + data[shape.end(1) :]


class Hostile:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (open, (os.environ["HOSTILE"], "w"))


def pickled(path: Path, case: Case, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HOSTILE", str(case.folder / "hostile"))
    path.write_bytes(pickle.dumps(Hostile()))


def of_another_training(path: Path, case: Case, patch: pytest.MonkeyPatch) -> None:
    if not (case.folder / "other").exists():
        case.killed("other", case.other)
    shutil.copy(case.folder / "other" / path.name, path)


def of_another_torch(path: Path, case: Case, patch: pytest.MonkeyPatch) -> None:
    if not (case.folder / "older").exists():
        with pytest.MonkeyPatch.context() as older:
            versions = {**environment.versions(), "torch": "2.5.0"}
            older.setattr(environment, "versions", lambda: versions)
            case.killed("older")
    shutil.copy(case.folder / "older" / path.name, path)


def unreadable(path: Path, case: Case, patch: pytest.MonkeyPatch) -> None:
    """The disk cannot read the file; one that is written in its place is another."""
    broken = case.folder / f"broken {path.name}"  # a second name: while it stands, no new file gets the inode
    os.link(path, broken)
    plain = Path.open

    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == path and path.samefile(broken):
            raise OSError(5, "Input/output error", str(self))
        return plain(self, *args, **kwargs)

    patch.setattr(Path, "open", opened)


DAMAGES: dict[str, Damage] = {
    "half": bytes_changed(lambda data: data[: len(data) // 2]),
    "empty": bytes_changed(lambda data: b""),
    "longer": bytes_changed(lambda data: data + b"\0"),
    "other dtype": bytes_changed(lambda data: data.replace(b'"F32"', b'"I32"', 1)),
    "other shape": bytes_changed(flattened),
    "pickle": pickled,
    "folder": replaced(lambda path: (path / "within").mkdir(parents=True)),
    "pipe": replaced(os.mkfifo),
    "link to itself": replaced(lambda path: path.symlink_to(path.name)),
    "unreadable": unreadable,
    "another training's": of_another_training,
    "another torch's": of_another_torch,
}
OTHERS = [
    "distill/training", "distill/teacher-1-00001", "gradual/training", "elsa/training", "gates/training", "translate/training",
    "reconstruct/decoder-1",
]  # fmt: skip
DAMAGED = [("finetune/training", damage) for damage in DAMAGES] + [(file, "another training's") for file in OTHERS]


@pytest.mark.parametrize(("file", "damage"), DAMAGED, ids=lambda value: str(value).replace(" ", "-"))
def test_a_damaged_file_is_noted(
    file: str, damage: str, cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, stem = file.partition("/")
    case = cases(name)
    path = case.left() / f"{stem}.safetensors"
    assert path.is_file()
    DAMAGES[damage](path, case, monkeypatch)
    evidence = case.resumed()
    assert path.name in evidence.note and not (case.folder / "hostile").exists()
    assert [str(path) in note for note in case.notes] == [True]


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nothing")])
def test_something_else_in_place_of_the_folder(make: Callable[[Path], None], cases: Callable[[str], Case]) -> None:
    case = cases("distill")
    path = case.left()
    shutil.rmtree(path)
    make(path)
    evidence = case.resumed()
    assert "r: " in evidence.note and [str(path) in note for note in case.notes] == [True]


def test_all_of_it_damaged(cases: Callable[[str], Case]) -> None:
    """Each file is named."""
    case = cases("distill")
    files = list(case.left().iterdir())
    for path in files:
        path.write_bytes(b"")
    evidence = case.resumed()
    assert len(files) == len(case.notes) == 7 and all(path.name in evidence.note for path in files)


def test_a_note_outlives_another_kill(cases: Callable[[str], Case]) -> None:
    case = cases("gradual")
    (case.left() / STATE).write_bytes(b"")
    case.killed("r")
    evidence = case.resumed()
    assert evidence.note.count(STATE) == 1 == len(case.notes)


def test_a_bit_of_any_byte_is_found(tmp_path: Path) -> None:
    values = {
        "floats": torch.arange(5.0),
        "brain": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3),
        "nothing": torch.zeros(0, 4),
        7: [1.5, None, float("inf"), "words", (1, {2: 0.1})],
    }
    folder = resume.ResumeFolder(tmp_path / "kept")
    folder.write("file", {"is": (1, 2)}, values)
    path, belongs = tmp_path / "kept" / "file", {"is": [1, 2]}
    data, again = path.read_bytes(), folder.read("file", belongs)
    assert again[7] == [1.5, None, float("inf"), "words", [1, {2: 0.1}]]
    tensors = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(again[name], values[name]) and again[name].dtype == values[name].dtype for name in tensors)
    path.unlink()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert folder.read("file", belongs) is None and not path.exists()
    assert len(folder.notes) == len(data) > 500
