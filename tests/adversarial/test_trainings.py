"""Trainings killed while they write a file, and damaged files of killed trainings.

They are resumed to the same model, bit for bit, and a note names a file that was not used.
"""

import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from sparsebench import environment
from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.steps.contract import Context, Step, StepReport
from sparsebench.steps.recover import reading, resume, teacher, trainer
from sparsebench.steps.registry import kinds, single
from tests.models.replaying import written
from tests.steps.recover.making import training_text
from tests.steps.recover.test_teachers import tokenizer
from tests.steps.recover.test_whole import Killed, killer

ROOT = Path(__file__).parents[2]
USUAL = {"tokens": 450, "batch": 4, "rate": 3e-3, "held_out": 0.2, "evaluations": 2}
TAUGHT = {**USUAL, "top_k": 8}
MIXED = {**TAUGHT, "tokens": 900, "rate": 1e-3, "alpha": 0.5, "alpha_schedule": "linear_growth"}
GROWING = {**TAUGHT, "tokens": 900, "sparsity": 0.6, "frequency": 2}
BLOCKS = {"epochs": 2, "held_out": 0.25}
SCENARIOS: dict[str, tuple[str, tuple[str, str, dict[str, Any]], dict[str, Any]]] = {
    "finetune": ("llama", ("recover", "finetune", USUAL), {"rate": 1e-3}),
    "distill": ("llama", ("recover", "distill", {**TAUGHT, "teacher": ["dense", "path:wide"]}), {"temperature": 2.0}),
    "gradual": ("llama", ("prune", "gradual", GROWING), {"temperature": 2.0}),
    "elsa": ("llama", ("prune", "elsa", {**USUAL, "sparsity": 0.5, "interval": 2}), {"penalty": 0.1}),
    "gates": ("llama", ("shrink", "gates", {**TAUGHT, "parameters": 0.8}), {"temperature": 2.0}),
    "states": ("bert", ("recover", "distill", {**USUAL, "match": "hidden_mse"}), {"rate": 1e-3}),
    "translate": ("t5", ("recover", "distill", MIXED), {"temperature": 2.0}),
    "reconstruct": ("llama", ("recover", "reconstruct", BLOCKS), {"rate": 1e-3}),
}
"""Trainings by name: the model's kind, the step, and what differs in another training, whose files must not be taken."""
STATE = "training.safetensors"


@dataclass
class Case:
    """A training, what came of it without a break, and the folder that a killed process left of it."""

    name: str
    folder: Path
    step: Step
    other: Step
    family: Any
    whole: Any = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, folder: Path) -> Self:
        """Make the models, unless they are there."""
        kind, (verb, method, settings), change = SCENARIOS[name]
        if not (folder / "dense").exists():
            for seed, (model, changes) in enumerate({"dense": {}, "parent": {}, "wide": {"hidden_size": 48}}.items()):
                written(kind, folder / model, seed, num_hidden_layers=3, **changes)
                tokenizer(folder / model)
        steps = [single(verb, method, **{**settings, **more}) for more in ({}, change)]
        return cls(name, folder, *steps, MODEL_TYPES[kind])

    def go(self, out: str, kept: str | None, step: Step | None = None, **options: Any) -> Any:
        """Train, resuming from the folder ``kept``. Return evidence or an error."""
        results: list[Any] = []
        asked = step or self.step
        if kept is not None:
            options |= {"resume": lambda _: self.folder / kept, "note": self.notes.append}
        context = Context(
            self.family, 0, "auto", lambda: training_text(self.family), dense=self.folder / "dense",
            training_tokens=lambda wanted: training_text(self.family, min(wanted.samples, 24)),
            fetch_file=lambda source: self.folder / source.removeprefix("path:"), **options,
        )  # fmt: skip
        run = kinds()[asked.verb].load()
        run(self.folder / "parent", {asked: self.folder / out}, context, lambda _, result: results.append(result))
        return results[0]

    def killed(self, kept: str, step: Step | None = None) -> Path:
        """Leave what a killed training leaves."""
        progress = stopper(2) if self.step.name == "reconstruct" else killer(4)
        with pytest.raises(Killed):
            self.go("lost", kept, step, progress=progress)
        return self.folder / kept

    def left(self) -> Path:
        """Return a new copy of what a killed training left."""
        self.notes.clear()
        shutil.rmtree(self.folder / "r", ignore_errors=True)
        return Path(shutil.copytree(self.folder / "kept", self.folder / "r"))

    def resumed(self, **options: Any) -> StepReport:
        """Train from the folder ``r`` on: nothing in the model or its evidence differs from a training without a break."""
        evidence = self.go("out", "r", **options)
        assert isinstance(evidence, StepReport), evidence
        whole, resumed = Checkpoint(self.folder / "whole"), Checkpoint(self.folder / "out")
        assert set(whole.tensors) == set(resumed.tensors)
        assert all(torch.equal(whole.load(name), resumed.load(name)) for name in whole.tensors)
        assert (evidence.curve, evidence.zeros) == (self.whole.curve, self.whole.zeros)
        assert evidence.trained_tokens == self.whole.trained_tokens
        assert not (self.folder / "r").exists()
        return evidence


def stopper(at: int) -> Callable[..., None]:
    """Progress that ends when so many blocks are done."""

    def told(done: int, total: int, words: str = "") -> None:
        if done == at:
            raise Killed

    return told


def small(patch: pytest.MonkeyPatch) -> None:
    """Save every step, a teacher's outputs in several files; calculate in one thread."""
    torch.set_num_threads(1)
    sizes = ((trainer, "CHECKPOINT_SECONDS", 0.0), (reading, "TOKENS_AT_ONCE", 64), (teacher, "GROUPS_PER_FILE", 2))
    for module, name, size in sizes:
        patch.setattr(module, name, size)


@pytest.fixture(scope="module", name="cases")
def killed_trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Case]]:
    """The trainings, each made when it is first needed."""
    made, threads = dict[str, Case](), torch.get_num_threads()

    def case(name: str) -> Case:
        if name not in made:
            made[name] = new = Case.of(name, tmp_path_factory.mktemp(name))
            new.whole = new.go("whole", None)
            new.killed("kept")
            best = min(new.whole.curve, key=lambda point: point.held_out, default=None)
            assert best is None or best.step > 4, "what comes after the kill must count"
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        yield case
    torch.set_num_threads(threads)


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
            older.setitem(environment.versions(), "torch", "2.5.0")
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
TRAINED = [f"{name}/training" for name in ("distill", "gradual", "elsa", "gates", "translate")]
OTHERS = [*TRAINED, "distill/teacher-1-00001", "reconstruct/decoder-1"]
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


def test_all_of_it_damaged_or_something_else_in_its_place(cases: Callable[[str], Case]) -> None:
    case = cases("distill")
    files = list(case.left().iterdir())
    for path in files:
        path.write_bytes(b"")
    evidence = case.resumed()
    assert len(files) == len(case.notes) == 7 and all(path.name in evidence.note for path in files)
    for make in (Path.touch, lambda path: path.symlink_to("nothing")):
        path = case.left()
        shutil.rmtree(path)
        make(path)
        evidence = case.resumed()
        assert "r: " in evidence.note and [str(path) in note for note in case.notes] == [True]


def test_a_note_outlives_another_kill(cases: Callable[[str], Case]) -> None:
    case = cases("gradual")
    (case.left() / STATE).write_bytes(b"")
    case.killed("r")
    evidence = case.resumed()
    assert evidence.note.count(STATE) == 1 == len(case.notes)
