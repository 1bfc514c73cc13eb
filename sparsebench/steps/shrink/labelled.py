"""Labelled documents, on which Taylor's criterion takes the loss of a classification head, as in TextPruner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparsebench.errors import SourceError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import has_classifier
from sparsebench.models.files.labels import choice_problem, class_numbers, head_outputs
from sparsebench.models.files.text import longest_input
from sparsebench.sources.reference import Reference
from sparsebench.sources.text import read_labelled
from sparsebench.steps import samples
from sparsebench.steps.calibration import Calibrated, Calibration, in_order, sample_settings_of
from sparsebench.steps.contract import Context, Step
from sparsebench.steps.shrink.choosing import LENGTH


@dataclass(frozen=True)
class Labelled:
    """The tokens of labelled documents, and their classes as numbers of the head's outputs, (documents,) int64."""

    text: Calibrated
    classes: Any

    def note(self, step: Step) -> str:
        """Return a note for the variant: how many documents were read, and from where."""
        return f"scored by the labels of {len(self.classes)} documents of {Reference.parse(step.settings.source).name}"


def labels_problem(config: Mapping[str, Any]) -> str | None:
    """Return why a model has no loss on labelled documents; None where it has one."""
    if not has_classifier(config):
        return f"`labels: task` needs a sequence-classification head, and its config.json has {config.get('architectures')}"
    problem = choice_problem(config)
    return f"`labels: task` needs a head that chooses one class: {problem}" if problem else None


def read_documents(folder: Path, step: Step, context: Context) -> Labelled:
    """Read the step's documents, up to the number asked for, in the order that the context's seed gives.

    Raises SourceError for a file that holds no labelled documents, ModelError for a label that is no output of the head.
    """
    import torch

    settings, config = step.settings, Checkpoint(folder).config
    source = Reference.parse(settings.source).source
    length = min(LENGTH, longest_input(config) or LENGTH)
    calibration = Calibration(source, settings.documents, length, context.seed, settings.field)
    assert context.fetch_file is not None, "labelled documents are fetched"
    labelled = read_labelled(context.fetch_file(source), settings.field, settings.label)
    sample_settings = replace(sample_settings_of(folder, "encoder", calibration, config), training=True)
    try:
        batch, used = samples.passages(sample_settings, in_order(labelled.rows, context.seed))
    except SourceError as error:
        raise SourceError(f"labels: task: {source}: {error.message}", error.hint) from error
    classes = torch.tensor(class_numbers(head_outputs(config), [label for _, label in used]))
    notes = (f"{len(used)} labelled documents, at most {sample_settings.length} tokens",)
    return Labelled(Calibrated.of(batch, used, notes, {**asdict(calibration), "label": settings.label}), classes)
