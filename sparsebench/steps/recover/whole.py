"""``finetune`` and ``distill``: the whole model is trained, on its own loss or to reproduce its teachers' outputs.

Published runs read far more text than a machine without a GPU can: Sheared LLaMA (2310.06694) continues to pretrain its
shrunk models on 50 billion tokens, Minitron (2407.14679) distils on 94 billion. A run on less than a hundredth of that
says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from sparsebench import devices, energy, processor, sources
from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files import precision
from sparsebench.models.files.building import temporary
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import dimensions, has_masked_lm, output_family
from sparsebench.models.files.safety import left_out_sentence
from sparsebench.models.files.text import same_tokenizer
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.modules.load import load_model
from sparsebench.models.prepare import prepare
from sparsebench.models.shape.topology import parts, weight_tensors
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import Context, Step, StepReport
from sparsebench.steps.counting import step_report, verified_zeros
from sparsebench.steps.recover import qat, student
from sparsebench.steps.recover.reading import TrainingText, WordMasking, draw_samples, samples_by_step
from sparsebench.steps.recover.resume import ResumeFolder, checksum, versions
from sparsebench.steps.recover.settings import DENSE
from sparsebench.steps.recover.teacher import DistillationLoss, cross_entropy
from sparsebench.steps.recover.trainer import Pruning, State, Trainer
from sparsebench.steps.recover.weights import TrainedWeights

PUBLISHED_TOKENS = {
    "finetune": 50_000_000_000,
    "distill": 94_000_000_000,
    "elsa": 4096 * 8 * 2048,
    "gates": 3200 * 32 * 4096,
}
"""Tokens that the published runs train on: of the papers above, and of methods that prune during training."""
SMALL_SHARE = 0.01
"""A run on a smaller share of these tokens says so."""


@dataclass(frozen=True)
class OwnLoss:
    """A model's loss on its own predictions: of the next token, or of masked tokens where ``words`` is given."""

    model: PreTrainedModel
    text: TrainingText
    device: torch.device
    seed: int
    words: WordMasking | None = None

    def __call__(self, rows: Sequence[int], step: int) -> torch.Tensor:
        """Return the mean loss over the predicted tokens of some samples."""
        inputs = self.text.inputs(rows)
        if self.words:
            # Each step draws other tokens; the same samples at the same step always get the same draw.
            seed = self.seed + (step + 1) * 1_000_003 + rows[0]
            inputs["input_ids"], labels = self.words.masked(inputs["input_ids"], inputs["attention_mask"], seed)
            options = {}
        else:
            labels = self.text.next_tokens(rows)
            options = {"use_cache": False}
        outputs: Any = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()}, **options)
        return cross_entropy(outputs.logits, labels.to(self.device))


@dataclass(frozen=True)
class Training:
    """The training of one whole model, ``parent``, by the settings of ``step``; ``dense`` may be its teacher."""

    dense: Checkpoint
    parent: Checkpoint
    step: Step
    context: Context
    pruner: Callable[..., Pruning] | None = None
    """Takes the step's settings and a ``Pruner``'s arguments; returns the hooks that prune in training, if any."""

    def run(self, folder: Path) -> StepReport:
        """Train the model, write it, and count its zeros.

        Raises UnsupportedError for a model without such a loss; ModelError where the loss is not finite, or a pruned
        weight came back.
        """
        family = self.context.family
        model = self._load_student()
        calibrated, held_samples = draw_samples(self.step, self.context, self.parent.config)
        text = TrainingText(family, calibrated.batch)
        with self._resume_folder(folder) as resume_folder, temporary(folder.parent / ".teachers") as scratch:
            # Before the clock starts: fetching teachers is no part of a training.
            teacher_folders = self._teacher_folders(scratch)
            with energy.spending(self.context.device) as spent:
                began = time.perf_counter()
                trainer = self._make_trainer(model, text, held_samples, resume_folder, teacher_folders)
                trainer.preparation_seconds = time.perf_counter() - began
                trainer.total_joules = spent.total
                trained = trainer.run()
        tokens = trained.curve[-1].tokens
        evaluated = len(trained.curve) * sum(text.counts()[-held_samples:])
        operations = self._operations(trainer.loss, text, tokens, evaluated)
        provenance = {
            **self.step.provenance(family, self.context.seed),
            **calibrated.provenance(),
            "arithmetic": self.arithmetic,
            "operations": operations,
            "curve": [asdict(point) for point in trained.curve],
        }
        written_notes = self.write(folder, trained.weights, provenance)
        notes = [*self._training_notes(trained, trainer), *resume_folder.notes, *written_notes]
        report = step_report(
            folder,
            family,
            seconds=trained.seconds,
            note="; ".join(filter(None, notes)),
            provenance=calibrated.provenance(),
            zeros_in_parent=self.zeros_in_parent,
        )
        resume_folder.remove()
        return replace(
            report,
            trained_tokens=tokens,
            operations=operations,
            curve=tuple(trained.curve),
            joules=trained.joules,
            energy_source=spent.source_of(trained.joules),
        )

    def _training_notes(self, trained: State, trainer: Trainer) -> list[str]:
        """Return what a reader must know of a training: what it gained, and how much it read."""
        first, tokens = trained.curve[0], trained.curve[-1].tokens
        best = next(point for point in trained.curve if point.held_out == trained.best)
        samples = trainer.text.samples - trainer.held_samples
        epochs = sum(map(len, trainer.plan)) / samples
        published = PUBLISHED_TOKENS.get(self.step.name, 0)
        few_tokens = f"{tokens:,} tokens, where the published run read {published:,}"
        return [
            f"loss on text held out {first.held_out:.4g}, then {best.held_out:.4g} after {best.tokens:,} tokens",
            f"{samples:,} samples read {epochs:.2g} times" if epochs > 1 else "",
            f"calculated in {self.arithmetic}",
            few_tokens if tokens < SMALL_SHARE * published else "",
        ]

    def _operations(self, loss: Any, text: TrainingText, tokens: int, evaluated: int) -> float:
        """Count the operations of training on ``tokens`` and of evaluating others, those of teachers included."""
        operations = self._parameters_per_token(self.parent, text) * (6.0 * tokens + 2.0 * evaluated)
        if isinstance(loss, DistillationLoss):
            operations += 2.0 * loss.teacher_parameters_per_token * (loss.stored_tokens or tokens + evaluated)
        return operations

    def zeros_in_parent(self, written: Checkpoint, name: str) -> int:
        """Count the parent's zeros in a matrix. Raises ModelError where one of them is not zero in ``written``."""
        return verified_zeros(self.parent, written, name)

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor], provenance: Mapping[str, Any]) -> list[str]:
        """Write the trained tensors and, unchanged, all others; return notes for a reader, such as on omitted code."""
        with CheckpointWriter(folder, list(self.parent.tensors.values()), self.parent.folder) as writer:
            for name in list(writer.missing):
                changed = weights.get(name)
                writer.write(name, self.parent.load(name) if changed is None else changed)
            writer.close(dict(provenance))
        return [left_out_sentence(writer.left_out)]

    def _parameters_per_token(self, checkpoint: Checkpoint, text: TrainingText) -> float:
        """Return how many parameters a token uses, tied ones once.

        In an encoder-decoder each stack's parameters are weighted by the stack's share of the text's tokens.
        """
        model_parts = parts(checkpoint, self.context.family)
        share: dict[str, float] = {}
        if self.context.family == "encoder-decoder":
            encoder = int(text.batch.attention_mask.sum()) / sum(text.counts())
            share = {"encoder": encoder, "decoder": 1 - encoder}
        weights = weight_tensors(checkpoint, model_parts)
        return sum(info.numel * share.get(model_parts[name].stack, 1.0) for name, info in weights.items())

    def _load_student(self) -> PreTrainedModel:
        """Return the model to train, in float32 without dropout. Raises UnsupportedError where it lacks the loss."""
        config = self.parent.config
        if self.step.settings.teachers() or output_family(self.context.family, config) != "encoder":
            return load_model(self.parent.folder, self.context.family, "float32")
        if not has_masked_lm(config):
            raise UnsupportedError(
                f"{self.parent.folder}: config.json names {config.get('architectures')}, which predicts no masked words",
                "distill it instead: {recover: distill}",
            )
        return load_model(self.parent.folder, "encoder", "float32", kind=AutoModelForMaskedLM)

    def _make_trainer(
        self,
        model: PreTrainedModel,
        text: TrainingText,
        held_samples: int,
        resume_folder: ResumeFolder,
        teacher_folders: Sequence[Path],
    ) -> Trainer:
        """Return the training loop with its loss. Where the teachers' outputs are stored, they are computed here."""
        settings, seed = self.step.settings, self.context.seed
        output_kind = output_family(self.context.family, self.parent.config)
        from accelerate import Accelerator

        if ":" in self.context.device:  # Accelerator takes torch's current GPU
            torch.cuda.set_device(self.context.device)
        accelerator = Accelerator(cpu=not devices.is_gpu(self.context.device))
        device = accelerator.device
        model.to(device)
        plan = samples_by_step(text.counts()[:-held_samples], settings.tokens, settings.batch, seed)
        extra: list[torch.nn.Parameter] = []
        loss: DistillationLoss | OwnLoss
        identity = {"text": checksum(*vars(text.batch).values()), "arithmetic": self.arithmetic, "device": device.type}
        identity |= versions()
        if not teacher_folders:
            words = WordMasking.of(self.parent.folder, model.config.vocab_size) if output_kind == "encoder" else None
            loss = OwnLoss(model, text, device, seed, words)
        else:
            loss = DistillationLoss(model, [], output_kind, text, settings, device)
            rows = {row for batch in plan for row in batch}
            rows.update(range(text.samples - held_samples, text.samples))
            identity["teachers"] = self._add_teachers(loss, teacher_folders, sorted(rows), resume_folder, identity)
            loss.prepare(seed, len(plan))
            extra = list(loss.projections.parameters())
        weights = TrainedWeights(model, self.parent, self.context.family)
        identity |= {"step": self.step.record(), "seed": seed, "held": held_samples}
        identity["weights"] = checksum(*weights.leaves)
        if scheme := settings.qat_scheme():
            qat.round_forward(weights, scheme)
        return Trainer(
            weights,
            loss,
            text,
            held_samples,
            plan,
            self.step,
            self.context,
            accelerator,
            self.arithmetic,
            extra=extra,
            resume_folder=resume_folder if self.context.resume else None,
            identity=identity,
            pruner=partial(self.pruner, settings) if self.pruner else None,
        )

    def _add_teachers(
        self,
        loss: DistillationLoss,
        teacher_folders: Sequence[Path],
        rows: Sequence[int],
        resume_folder: ResumeFolder,
        identity: Mapping[str, Any],
    ) -> list[str]:
        """Give the loss its teachers, or their outputs for some samples where these can be stored.

        ``identity`` is what all of their outputs depend on. Return a checksum of each teacher.
        """
        settings = self.step.settings
        checksums: list[str] = []
        for folder in teacher_folders:
            teacher: Any = load_model(folder, self.context.family, self.arithmetic)
            teacher.requires_grad_(False).to(loss.device)
            loss.teacher_parameters_per_token += self._parameters_per_token(Checkpoint(folder), loss.text)
            checksums.append(checksum(*(part for item in teacher.state_dict().items() for part in item)))
            if settings.top_k and settings.match == "none" and loss.family != "encoder":
                parameters = {"top_k": settings.top_k, "temperature": settings.temperature}
                parameters |= {"teacher": checksums[-1], "rows": checksum(str(rows))}
                loss.store(teacher, resume_folder, {**identity, **parameters}, rows, self.context.progress)
            else:
                loss.teachers.append(teacher)
        return checksums

    def _teacher_folders(self, scratch: Path) -> list[Path]:
        """Return the folder of each teacher; one that is not the dense model is prepared in ``scratch``."""
        return [
            self.dense.folder if name == DENSE else self._fetched(Reference.parse(name), scratch / f"teacher-{number}")
            for number, name in enumerate(self.step.settings.teachers())
        ]

    def _fetched(self, source: Reference, folder: Path) -> Path:
        """Prepare a teacher in ``folder`` from its source.

        Raises ModelError without a way to fetch it (outside of a manifest), UnsupportedError for another tokenizer.
        """
        if self.context.fetch_file is None:
            raise ModelError(f"{source.name}: a teacher of its own needs a source", "use it in a manifest")
        fetched = self.context.fetch_file(source.source)
        # A folder of the user's is copied, not linked: it may change during the training.
        link = sources.parse(source.source).kind != "path"
        folder = prepare(fetched, folder, self.context.family, link=link)
        sizes = [dimensions(model.config).vocabulary for model in (Checkpoint(folder), self.parent)]
        mismatch = "" if same_tokenizer(folder, self.parent.folder) else "its tokenizer is not the model's"
        if sizes[0] != sizes[1]:
            mismatch = f"it has {sizes[0]:,} tokens, and the model {sizes[1]:,}"
        if mismatch:
            raise UnsupportedError(f"teacher {source.name}: {mismatch}", "a teacher with the same tokenizer")
        return folder

    @cached_property
    def arithmetic(self) -> str:
        """The precision of matrix products."""
        stored = precision.of_config(self.parent.config) or "float32"
        return processor.training_dtype(stored, self.step.settings.precision, self.context.device)

    @contextmanager
    def _resume_folder(self, folder: Path) -> Iterator[ResumeFolder]:
        """Yield the folder for the loop's state and the teachers' outputs; it is temporary where nothing is resumed."""
        if self.context.resume is not None:
            yield ResumeFolder(self.context.resume(self.step), self.context.note)
            return
        with temporary(folder.parent / ".training") as scratch:
            yield ResumeFolder(scratch)


def train_model(
    checkpoint: Checkpoint,
    dense: Checkpoint,
    step: Step,
    context: Context,
    folder: Path,
    pruner: Callable[..., Pruning] | None,
) -> StepReport:
    """Train the model of ``checkpoint``, or the student that the step describes, and write it into ``folder``.

    Raises ModelError without a source of text, and what ``Training.run`` and ``student.write_student`` raise.
    """
    if context.training_tokens is None:
        raise ModelError(f"{step.verb}: {step.name} needs a source of text", "use it in a manifest")
    student_settings = getattr(step.settings, "student", None)
    if not student_settings:
        return Training(dense, checkpoint, step, context, pruner).run(folder)
    with temporary(folder.parent / ".student") as scratch:
        student_options = student_settings.model_dump(exclude_none=True)
        description = student.write_student(
            checkpoint, context.family, student_options, context.seed, scratch / "model"
        )
        student_checkpoint = Checkpoint(scratch / "model")
        report = Training(dense, student_checkpoint, step, context, pruner).run(folder)
    return replace(report, note=f"{description}; {report.note}")
