"""Small trainings of every kind, killed in the middle, to be resumed from damaged files or after another kill."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.steps.contract import Context, Step, StepReport
from sparsebench.steps.recover import reading, teacher, trainer
from sparsebench.steps.registry import kinds, single
from tests.models.replaying import written
from tests.steps.recover.making import training_text
from tests.steps.recover.test_teachers import tokenizer
from tests.steps.recover.test_whole import Killed, killer

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
    patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    patch.setattr(reading, "TOKENS_AT_ONCE", 64)
    patch.setattr(teacher, "GROUPS_PER_FILE", 2)


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
