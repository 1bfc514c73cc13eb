"""Trainings of small models, made as a run makes them."""

from pathlib import Path
from typing import Any

import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.batch import Batch
from sparsebench.models.shape.topology import parts
from sparsebench.steps.calibration import Calibrated, Calibration
from sparsebench.steps.contract import Step, StepReport
from sparsebench.steps.recover.reading import TrainingText
from sparsebench.steps.registry import single
from tests.making import make
from tests.models.replaying import batch, written

SAMPLES = 24


def calibration_text(family: str, samples: int = SAMPLES) -> Calibrated:
    """Random tokens as calibration text; every fifth sample is short."""
    given = batch(family, samples, padded=False)
    for mask in (given.attention_mask, given.decoder_attention_mask):
        if mask is not None:
            mask[::5, 10:] = False
    return Calibrated(given, "sha", "text", int(given.attention_mask.sum()), ())


def training_text(family: str, samples: int = SAMPLES) -> Calibrated:
    """Random tokens of which every fifth sample is short; few distinct ones, so that there is something to learn."""
    given = batch(family, samples, padded=False)
    ids = [None if one is None else 3 + one % 7 for one in (given.input_ids, given.decoder_input_ids)]
    for mask in (given.attention_mask, given.decoder_attention_mask):
        if mask is not None and family != "decoder":
            mask[::5, 8:] = False
    made = Batch(ids[0], given.attention_mask, ids[1], given.decoder_attention_mask)
    return Calibrated(made, "sha", "text", int(made.attention_mask.sum()), ())


def made(
    parent: Path, family: Any, folder: Path, step: Step, dense: Path, samples: int = SAMPLES, **options: Any
) -> Any:
    """What came of one step; what it fails with is raised."""

    def draw(asked: Calibration) -> Calibrated:
        return training_text(family, min(asked.samples, samples))

    texts: dict[str, Any] = {"calibration_tokens": lambda: calibration_text(family, samples), "training_tokens": draw}
    return make(parent, family, {step: folder}, dense=dense, **texts | options)[step]


def pruned(kind: str, folder: Path, **changes: Any) -> tuple[Path, Path, Any]:
    """A model, half of whose prunable weights are zero in a copy, and its family."""
    dense, family = written(kind, folder / "dense", **changes)
    made(dense, family, folder / "pruned", single("prune", "magnitude", sparsity=0.5), dense)
    return dense, folder / "pruned", family


def step(name: str, **changes: Any) -> Step:
    """A step of ``recover``, of few tokens."""
    usual = {"tokens": 1500, "batch": 4, "rate": 3e-3, "held_out": 0.2, "evaluations": 3}
    return single("recover", name, **{**usual, **changes})


def zeros_stay(parent: Path, folder: Path, family: Any, found: StepReport) -> None:
    """Every zero is where it was, much else is not what it was, and the evidence counts so."""
    old, new = Checkpoint(parent), Checkpoint(folder)
    changed = 0
    for name, part in parts(old, family).items():
        assert new.tensors[name].dtype == old.tensors[name].dtype
        one, other = old.load(name), new.load(name)
        if part.prunable:
            assert not other[one == 0].any(), name
            changed += int((one != other).sum())
    assert changed > found.prunable / 4
    assert found.already_zero == found.zeros >= found.prunable // 2


def held_out_loss(folder: Path, family: Any) -> float:
    """The loss of stock transformers' model on the samples that ``step`` holds out."""
    model, text = load_model(folder, family), TrainingText(family, training_text(family).batch)
    rows = range(SAMPLES - round(0.2 * SAMPLES), SAMPLES)
    with torch.no_grad():
        logits = model(**text.inputs(rows)).logits
    return float(torch.nn.functional.cross_entropy(logits.transpose(1, 2), text.next_tokens(rows)))
