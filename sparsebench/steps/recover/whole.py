"""``finetune`` and ``distill``: the whole model trained, on its own loss or to say what the dense model says.

Published runs read far more than a machine without a GPU can: Sheared LLaMA (2310.06694) goes on pretraining its shrunk models
for 50 billion tokens, Minitron (2407.14679) distils into its own for 94 billion. A run under a hundredth of that says so.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsebench import devices, energy, environment, sources
from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models import precision
from sparsebench.models.building import temporary
from sparsebench.models.checkpoint import Checkpoint, CheckpointWriter
from sparsebench.models.dimensions import dimensions
from sparsebench.models.families import has_masked_lm
from sparsebench.models.load import load_masked_lm, load_model
from sparsebench.models.prepare import prepare
from sparsebench.models.safety import told
from sparsebench.models.tokenizers import same_tokenizer
from sparsebench.models.topology import parts
from sparsebench.steps.contract import Context, Evidence, Step, of_text
from sparsebench.steps.evidence import counted, kept_zeros
from sparsebench.steps.recover import DENSE, OWN, student, teachers
from sparsebench.steps.recover.reading import TrainingText, WordMasking, draw, schedule
from sparsebench.steps.recover.teacher import Distillation, cross_entropy
from sparsebench.steps.recover.trainer import Pruning, Trained, TrainedWeights, Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PUBLISHED = {
    "finetune": 50_000_000_000,
    "distill": 94_000_000_000,
    "elsa": 4096 * 8 * 2048,
    "movement": 10 * 88_524 * 384,
    "gates": 3200 * 32 * 4096,
}
"""Tokens that these papers train on, and those of what prunes on the way."""
CHANGING = {"rigl": 25_000}
"""Steps in which masks of a published run change that reads no tokens."""
FEW = 0.01


@dataclass(frozen=True)
class OwnLoss:
    """A model's loss on its own predictions: of the next token, or of masked words where ``words`` says how."""

    model: PreTrainedModel
    text: TrainingText
    device: torch.device
    seed: int
    words: WordMasking | None = None

    def __call__(self, rows: Sequence[int], number: int) -> torch.Tensor:
        """The mean over what is predicted in some samples."""
        given = self.text.given(rows)
        if self.words:
            # Another draw at every step, and always the same one for the same samples at the same step.
            seed = self.seed + (number + 1) * 1_000_003 + rows[0]
            given["input_ids"], labels = self.words.masked(given["input_ids"], given["attention_mask"], seed)
            quiet = {}
        else:
            labels, quiet = self.text.next_tokens(rows), {"use_cache": False}
        found: Any = self.model(**{name: tensor.to(self.device) for name, tensor in given.items()}, **quiet)
        return cross_entropy(found.logits, labels.to(self.device))


@dataclass(frozen=True)
class Training:
    """One model trained as a whole: made from ``parent`` after ``dense``, by the settings of ``step``."""

    dense: Checkpoint
    parent: Checkpoint
    step: Step
    context: Context
    pruner: Callable[..., Pruning] | None = None
    """From the step's settings and what a ``Pruner`` takes to what makes zeros on the way, if anything does."""

    def run(self, folder: Path, kept: Callable[[Checkpoint, str], int] | None = None) -> Evidence:
        """Train, write and count; ``kept`` counts the zeros of the parent that a written checkpoint has as well.

        Raises UnsupportedError for a model that has no such loss, ModelError where the loss is no number any more, or a pruned
        weight came back.
        """
        own, family = self.step.settings, self.context.family
        model = self._student()
        text, held = draw(self.step, self.context, self.parent.config)
        with self._place(folder) as place:
            # Before the clock runs: fetching is no part of a training.
            taught_by = [] if self.step.name in OWN else self._taught_by(place)
            with energy.spending(self.context.device) as spent:
                began = time.perf_counter()
                trainer, loss = self._trainer(model, TrainingText(family, text.batch), held, place, taught_by)
                trainer.prepared, trainer.joules = time.perf_counter() - began, spent.joules
                trained = trainer.run()
        looks = len(trained.curve) * sum(trainer.text.counts()[-held:])
        operations = self._a_token(self.parent, trainer.text) * (6.0 * trained.tokens + 2.0 * looks)
        if self.step.name not in OWN:
            operations += 2.0 * loss.parameters * (loss.asked or trained.tokens + looks)
        last = next(point for point in trained.curve if point.held_out == trained.best)
        words = [
            f"loss on text held out {trained.curve[0].held_out:.4g}, then {last.held_out:.4g} after {last.tokens:,} tokens",
            f"{trainer.text.samples - held:,} samples read {trained.epochs:.2g} times" if trained.epochs > 1 else "",
            f"calculated in {self._arithmetic()}",
            self._budget(trained),
        ]
        made = {"family": family, self.step.verb: self.step.name, **own, "seed": self.context.seed, **text.told()}
        made |= {"arithmetic": self._arithmetic(), "operations": operations}
        made |= {"curve": [asdict(point) for point in trained.curve]}
        note = "; ".join(filter(None, [*words, *self.write(folder, trained.weights, made)]))
        found = counted(folder, family, trained.seconds, 1, note, text.told(), kept)
        if self.context.resume:
            shutil.rmtree(self.context.resume(self.step), ignore_errors=True)
        lost = trained.joules is None and spent.meter.counts
        return replace(
            found, trained_tokens=trained.tokens, operations=operations, curve=trained.curve, joules=trained.joules,
            energy_source=energy.UNCOUNTED if lost else spent.source,
        )  # fmt: skip

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor], made: Mapping[str, Any]) -> list[str]:
        """Write the trained tensors, and the others as they are; gives what else a reader must know."""
        with CheckpointWriter(folder, list(self.parent.tensors.values()), self.parent.folder) as writer:
            for name in list(writer.missing):
                changed = weights.get(name)
                writer.write(name, self.parent.load(name) if changed is None else changed)
            writer.close(dict(made))
        return [told(writer.left_out)]

    def _a_token(self, checkpoint: Checkpoint, text: TrainingText) -> float:
        """How many parameters a token meets, tied ones once: of two stacks each side's, by its share of the text's tokens."""
        places, share = parts(checkpoint, self.context.family), dict[str, float]()
        if self.context.family == "encoder-decoder":
            encoder = int(text.batch.attention_mask.sum()) / sum(text.counts())
            share = {"encoder": encoder, "decoder": 1 - encoder}
        met = (info for info in checkpoint.tensors.values() if info.name not in checkpoint.ties)
        return sum(info.numel * share.get(places[info.name].side, 1.0) for info in met)

    def _budget(self, trained: Trained) -> str:
        """What the published run had, where this one had less than a hundredth of it."""
        what, steps = self.step.settings.get("by", self.step.name), trained.curve[-1].step
        if trained.tokens < FEW * PUBLISHED.get(what, 0):
            return f"{trained.tokens:,} tokens, where the published run read {PUBLISHED[what]:,}"
        if steps < FEW * CHANGING.get(what, 0):
            return f"{steps:,} steps, where masks of the published run changed for {CHANGING[what]:,}"
        return ""

    def _student(self) -> PreTrainedModel:
        """The model to be trained, in float32 and without dropout. Raises UnsupportedError where it has no loss of its own."""
        config = self.parent.config
        if self.step.name not in OWN or self.context.family != "encoder":
            return load_model(self.parent.folder, self.context.family, "float32")
        if not has_masked_lm(config):
            raise UnsupportedError(
                f"{self.parent.folder}: config.json names {config.get('architectures')}, which predicts no masked words",
                "distill it instead: {recover: distill}",
            )
        return load_masked_lm(self.parent.folder, "float32")

    def _trainer(
        self, model: PreTrainedModel, text: TrainingText, held: int, place: Path, taught_by: Sequence[Path]
    ) -> tuple[Trainer, Any]:
        """The loop, and its loss; what the teachers say is asked for here, where it is kept."""
        own, seed, family = self.step.settings, self.context.seed, self.context.family
        from accelerate import Accelerator

        arithmetic = self._arithmetic()
        accelerator = Accelerator(cpu=not devices.is_gpu(self.context.device))
        device = accelerator.device
        model.to(device)
        extra: list[torch.nn.Parameter] = []
        loss: Any
        if self.step.name in OWN:
            words = WordMasking.of(self.parent.folder, model.config.vocab_size) if family == "encoder" else None
            loss = OwnLoss(model, text, device, seed, words)
        else:
            loss = Distillation(model, [], family, text, own, device)
            plan = schedule(text.counts()[:-held], own["tokens"], own["batch"], seed)
            read = sorted({row for rows in plan for row in rows} | {*range(text.samples - held, text.samples)})
            for number, one in enumerate(taught_by):
                teacher = load_model(one, family, arithmetic).requires_grad_(False).to(device)
                loss.parameters += self._a_token(Checkpoint(one), text)
                if own["top_k"] and own["match"] == "none" and family != "encoder":
                    loss.keep(teacher, place / f"said-{number}", read, self._asking)
                else:
                    loss.teachers.append(teacher)
            loss.prepare(seed, len(plan))
            extra = list(loss.projections.parameters())
        weights = TrainedWeights(model, self.parent, family, own["train"], own.get("rank", 0), seed)
        return Trainer(
            weights, loss, text, held, self.step, self.context, accelerator, arithmetic, extra,
            place if self.context.resume else None, partial(self.pruner, own) if self.pruner else None,
        ), loss  # fmt: skip

    def _taught_by(self, place: Path) -> list[Path]:
        """The folder of each teacher, made from its source in ``place`` where it is not the dense model.

        Raises UnsupportedError for one that does not read text as the same tokens.
        """
        found = []
        for number, named in enumerate(teachers(self.step.settings)):
            if named == DENSE:
                found.append(self.dense.folder)
                continue
            source = of_text(named)
            if self.context.fetch is None:
                raise ModelError(f"{source.name}: a teacher of its own needs a source", "use it in a manifest")
            fetched = self.context.fetch(source.source)
            # What lies in a folder of the user's may change meanwhile.
            link = sources.parse(source.source).kind != "path"
            folder = prepare(fetched, place / f"teacher-{number}", self.context.family, link=link)
            rows = [dimensions(one.config).vocabulary for one in (Checkpoint(folder), self.parent)]
            if rows[0] != rows[1] or not same_tokenizer(folder, self.parent.folder):
                what = f"it has {rows[0]:,} tokens, and the model {rows[1]:,}"
                what = what if rows[0] != rows[1] else "its tokenizer is not the model's"
                raise UnsupportedError(f"teacher {source.name}: {what}", "a teacher with the same tokenizer")
            found.append(folder)
        return found

    def _asking(self, done: int, total: int) -> None:
        if self.context.progress is not None:
            self.context.progress(done, total, "samples shown to a teacher")

    def _arithmetic(self) -> str:
        """The precision of matrix products."""
        stored = precision.of_config(self.parent.config) or "float32"
        return environment.training_arithmetic(stored, self.step.settings["precision"], self.context.device)

    @contextmanager
    def _place(self, folder: Path) -> Iterator[Path]:
        """Where the loop and the teacher keep what they need: found again after a kill, where the run has a folder for that."""
        if self.context.resume is None:
            with temporary(folder.parent / ".training") as place:
                yield place
            return
        place = self.context.resume(self.step)
        place.mkdir(parents=True, exist_ok=True)
        yield place


def run(
    checkpoint: Checkpoint,
    dense: Checkpoint,
    step: Step,
    context: Context,
    folder: Path,
    pruner: Callable[..., Pruning] | None,
) -> Evidence:
    """Train the model of ``checkpoint``, or the student that its settings describe, by one step, into ``folder``.

    Raises as ``Training.run`` and ``student.write``.
    """
    if context.draw is None:
        raise ModelError(f"{step.verb}: {step.name} needs a source of text", "use it in a manifest")
    if not (described := step.settings.get("student")):
        return Training(dense, checkpoint, step, context, pruner).run(folder, partial(kept_zeros, checkpoint))
    with temporary(folder.parent / ".student") as place:
        told = student.write(checkpoint, context.family, described, context.seed, place / "model")
        begun = Checkpoint(place / "model")
        found = Training(dense, begun, step, context, pruner).run(folder, partial(kept_zeros, begun))
    return replace(found, note=f"{told}; {found.note}")
