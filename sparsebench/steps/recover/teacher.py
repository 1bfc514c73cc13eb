"""Distillation: the teachers' outputs for the samples, computed at each step or kept on disk, and the student's loss.

With several teachers, the loss is the mean of the divergences from each. Over the whole vocabulary, the divergence from
the mean of their probabilities differs from this only by a term that does not depend on the student; the gradient is
the same. Where only the likeliest tokens are compared, each teacher has its own, and its own rest. (TextBrewer's
MultiTeacherDistiller averages logits, which is another mean of the same probabilities.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from sparsebench.errors import UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.steps.contract import StepProgress
from sparsebench.steps.recover import losses
from sparsebench.steps.recover.reading import UNLABELLED, TrainingText
from sparsebench.steps.recover.resume import ResumeFolder
from sparsebench.steps.recover.settings import TaughtTraining

ATTENTION = ("attention_mse", "attention_ce")
LAYER_DISTANCES = {
    "hidden_mse": losses.hidden_mse,
    "cos": losses.cos,
    "attention_mse": losses.attention_mse,
    "attention_ce": losses.attention_ce,
}
FLOW_DISTANCES = {"fsp": losses.fsp, "nst": losses.nst}


@dataclass(frozen=True)
class ModelOutputs:
    """A model's outputs for some samples.

    ``logits`` are (rows, length, vocabulary), None for an encoder. ``states`` are those before the first block and
    after each block, ``attentions`` those of each block if they were requested; for an encoder-decoder both are the
    decoder's.
    """

    logits: torch.Tensor | None
    states: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor, ...]


def model_outputs(
    model: PreTrainedModel, family: Family, inputs: dict[str, torch.Tensor], attentions: bool = False
) -> ModelOutputs:
    """Run a model, for an encoder without its head, and return its outputs."""
    module: Any = model.base_model if family == "encoder" else model
    options = {} if family == "encoder" else {"use_cache": False}
    outputs = module(**inputs, **options, output_hidden_states=True, output_attentions=attentions)
    prefix = "decoder_" if family == "encoder-decoder" else ""
    states = outputs[f"{prefix}hidden_states"]
    return ModelOutputs(getattr(outputs, "logits", None), states, outputs[f"{prefix}attentions"] if attentions else ())


GROUPS_PER_FILE = 16
"""Groups of samples in a file of a teacher's outputs: 17 MB at most, with 64 tokens a position."""


TeacherCache = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""One teacher's likeliest tokens, by sample: ids (length, k) int32 and log probabilities (length, k) float32.

They are rows of files that are mapped, not read.
"""


def layer_pairs(student: int, teacher: int, layers: Any, first_layer: int = 0) -> list[tuple[int, int]]:
    """Return pairs of a student's and a teacher's layer to compare: all evenly, the last, or named ones.

    Layers are numbered from 1. Raises UnsupportedError for a pair with a number above the layers of its model or below
    ``first_layer``.
    """
    if layers == "last":
        return [(student, teacher)]
    if not isinstance(layers, str):
        for student_layer, teacher_layer in layers:
            if not (first_layer <= student_layer <= student and first_layer <= teacher_layer <= teacher):
                raise UnsupportedError(
                    f"layers: [{student_layer}, {teacher_layer}]: the model has {student} layers, and the teacher {teacher}",
                    f"pairs of the model's and the teacher's, from {first_layer} on",
                )
        return [(student_layer, teacher_layer) for student_layer, teacher_layer in layers]
    # With a much shallower teacher the first layers round to 0, which has states but no attention.
    return [(layer, max(first_layer, round(layer * teacher / student))) for layer in range(1, student + 1)]


@dataclass
class DistillationLoss:
    """The loss of a student: its divergence from the teachers (for an encoder, in states), its own loss, a match.

    ``teachers`` are in memory and run at each step; ``caches`` hold the stored outputs of those that are not needed any
    more. ``pairs`` are the layers to match, each with its entry of ``projections`` where states are compared.
    """

    model: PreTrainedModel
    teachers: list[PreTrainedModel]
    family: Family
    text: TrainingText
    settings: TaughtTraining
    device: torch.device
    caches: list[TeacherCache] = field(default_factory=list)
    projections: nn.ModuleList = field(default_factory=nn.ModuleList)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    teacher_parameters_per_token: float = 0.0
    """Summed over the teachers."""
    steps: int = 0
    """The number of steps of the training."""
    stored_tokens: int = 0
    """Tokens for which each teacher's outputs are stored; 0 where teachers run at each step."""

    def prepare(self, seed: int, steps: int) -> None:
        """Prepare a training of ``steps`` steps: pair the layers to match, with projections where widths differ.

        Raises UnsupportedError where these models cannot be compared as the settings ask.
        """
        self.steps = steps
        if refusal := self.settings.refuses_family(self.family):
            raise refusal.error()
        if self.settings.match == "none":
            self._check_last_states()
            return
        (teacher,) = self.teachers
        if self._matches_attention:
            for model in (self.model, teacher):
                model.set_attn_implementation("eager")
        inputs = self._inputs([0])
        outputs, teacher_outputs = (self._outputs_without_gradient(model, inputs) for model in (self.model, teacher))
        if self._matches_attention:
            self._pair_attentions(outputs.attentions, teacher_outputs.attentions)
        else:
            self._pair_states(outputs.states, teacher_outputs.states, seed)

    @property
    def _matches_attention(self) -> bool:
        return self.settings.match in ATTENTION

    def _check_last_states(self) -> None:
        """Raise UnsupportedError for an encoder whose last states are of another width than the teacher's."""
        if self.family != "encoder":
            return
        models = (self.model, self.teachers[0])
        width, teacher_width = (getattr(model.config, "hidden_size", None) for model in models)
        if width != teacher_width:
            raise UnsupportedError(
                f"an encoder's last states are compared as they are, and have {width} and {teacher_width} numbers",
                "name a `match` beside",
            )

    def _pair_attentions(self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> None:
        """Pair the layers of two models by their attentions, each (samples, heads, length, length)."""
        self.pairs = layer_pairs(len(student), len(teacher), self.settings.layers, 1)
        heads, teacher_heads = student[0].shape[1], teacher[0].shape[1]
        if heads != teacher_heads:
            has = f"of which the model has {heads} and the teacher {teacher_heads}"
            raise UnsupportedError(f"match: {self.settings.match} compares heads, {has}", "match: hidden_mse, or nst")

    def _pair_states(self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], seed: int) -> None:
        """Pair the layers of two models by their states, and draw the projections between those of other widths."""
        match = self.settings.match
        self.pairs = layer_pairs(len(student) - 1, len(teacher) - 1, self.settings.layers)
        if match in FLOW_DISTANCES and len(self.pairs) < 2:
            raise UnsupportedError(f"match: {match} compares pairs of layers, and there is one", "layers: uniform")
        generator = torch.Generator().manual_seed(seed)
        for student_layer, teacher_layer in self.pairs:
            width, teacher_width = student[student_layer].shape[-1], teacher[teacher_layer].shape[-1]
            # The Gram matrices of nst are (tokens, tokens), whatever the widths.
            same = match == "nst" or width == teacher_width
            projection = nn.Identity() if same else drawn_projection(width, teacher_width, generator)
            self.projections.append(projection.to(self.device))

    def store(
        self,
        teacher: PreTrainedModel,
        folder: ResumeFolder,
        identity: Mapping[str, Any],
        rows: Sequence[int],
        progress: StepProgress | None = None,
    ) -> None:
        """Store a teacher's likeliest tokens for the samples ``rows``; the teacher is not needed afterwards.

        ``identity`` tells its outputs from those of another teacher, or for another text. Files that a killed process
        left are used again; a group of samples is shown to the teacher whole or not at all, so that no bit changes.
        """
        cache: TeacherCache = {}
        groups = list(self.text.groups(rows))
        length = self.text.mask(range(self.text.samples)).shape[1]
        for start in range(0, len(groups), GROUPS_PER_FILE):
            file_groups = groups[start : start + GROUPS_PER_FILE]
            name = f"teacher-{len(self.caches)}-{start // GROUPS_PER_FILE:05}.safetensors"
            outputs = folder.read(name, identity)
            if outputs is None:
                computed = self._likeliest(teacher, file_groups, length)
                folder.write(name, identity, computed)
                outputs = folder.read(name, identity) or computed
            samples = [row for group in file_groups for row in group]
            cache |= zip(samples, zip(outputs["ids"], outputs["logs"], strict=True), strict=True)
            if progress:
                progress(len(cache), len(rows), "samples shown to a teacher")
        self.caches.append(cache)
        counts = self.text.counts()
        self.stored_tokens = sum(counts[row] for row in rows)

    def _likeliest(
        self, teacher: PreTrainedModel, groups: Sequence[Sequence[int]], length: int
    ) -> dict[str, torch.Tensor]:
        """Return a teacher's likeliest tokens at ``length`` positions of the samples of some groups."""
        count = min(self.settings.top_k, teacher.config.get_text_config().vocab_size)
        shape = (sum(map(len, groups)), length, count)
        ids = torch.zeros(shape, dtype=torch.int32, device="cpu")
        logs = torch.zeros(shape, device="cpu")
        start = 0
        for group in groups:
            outputs = self._outputs_without_gradient(teacher, self._inputs(group))
            assert outputs.logits is not None
            likeliest = losses.likeliest(outputs.logits, count, self.settings.temperature)
            for stored, values in zip((ids, logs), likeliest, strict=True):
                stored[start : start + len(group), : values.shape[1]] = values.cpu()
            start += len(group)
        return {"ids": ids, "logs": logs}

    def _outputs_without_gradient(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> ModelOutputs:
        with torch.no_grad():
            return model_outputs(model, self.family, inputs, self._matches_attention)

    def _inputs(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in self.text.inputs(rows).items()}

    def __call__(self, rows: Sequence[int], step: int) -> torch.Tensor:
        """Return the loss on some samples at a ``step``; -1 for held-out ones."""
        inputs, mask = self._inputs(rows), self.text.mask(rows).to(self.device)
        outputs = model_outputs(self.model, self.family, inputs, self._matches_attention)
        teacher_outputs = [self._outputs_without_gradient(teacher, inputs) for teacher in self.teachers]
        if self.family == "encoder":
            states, teacher_states = outputs.states[-1], teacher_outputs[0].states[-1]
            if states.shape[-1] == teacher_states.shape[-1]:
                total = losses.relative_error(states, teacher_states, mask)
            else:  # the match alone makes the loss
                total = torch.zeros((), device=self.device)
        else:
            assert outputs.logits is not None
            alpha = self.alpha(step)
            total = alpha * self._divergence(outputs.logits, teacher_outputs, rows, mask)
            if alpha < 1:
                targets = self.text.next_tokens(rows).to(self.device)
                total = total + (1 - alpha) * cross_entropy(outputs.logits, targets)
        if self.settings.match != "none":
            total = total + self.settings.match_weight * self._matched(outputs, teacher_outputs[0], mask)
        return total

    def alpha(self, step: int) -> float:
        """Return the teacher's share of a step's loss; constant for held-out text (-1), so that losses compare."""
        full: float = self.settings.alpha
        schedule = self.settings.alpha_schedule
        if schedule == "none" or step < 0:
            return full
        return full * (step / self.steps if schedule == "linear_growth" else 1 - step / self.steps)

    def _divergence(
        self, logits: torch.Tensor, teacher_outputs: Sequence[ModelOutputs], rows: Sequence[int], mask: torch.Tensor
    ) -> torch.Tensor:
        settings = self.settings
        likeliest: list[tuple[torch.Tensor, torch.Tensor]] = []
        for cache in self.caches:
            ids, logs = zip(*(cache[row] for row in rows), strict=True)
            length = mask.shape[1]
            stored_ids, stored_logs = (torch.stack(part)[:, :length].to(self.device)[mask] for part in (ids, logs))
            likeliest.append((stored_ids.long(), stored_logs))
        for outputs in teacher_outputs:
            assert outputs.logits is not None
            likeliest.append(losses.likeliest(outputs.logits[mask], settings.top_k or None, settings.temperature))
        kl = partial(losses.kl, temperature=settings.temperature)
        student_logits = logits[mask]
        return torch.stack([losses.in_pieces(kl, student_logits, ids, logs) for ids, logs in likeliest]).mean()

    def _matched(self, student: ModelOutputs, teacher: ModelOutputs, mask: torch.Tensor) -> torch.Tensor:
        """Return the mean of the match over the compared layers; for flows, over consecutive pairs of these."""
        if self._matches_attention:
            ours = [student.attentions[layer - 1] for layer, _ in self.pairs]
            theirs = [teacher.attentions[layer - 1] for _, layer in self.pairs]
        else:
            paired = zip(self.projections, self.pairs, strict=True)
            ours = [projection(student.states[layer]) for projection, (layer, _) in paired]
            theirs = [teacher.states[layer] for _, layer in self.pairs]
        if distance := LAYER_DISTANCES.get(self.settings.match):
            return torch.stack([distance(*compared, mask) for compared in zip(ours, theirs, strict=True)]).mean()
        flow_distance, flows = FLOW_DISTANCES[self.settings.match], zip(pairwise(ours), pairwise(theirs), strict=True)
        return torch.stack([flow_distance(*compared, mask) for compared in flows]).mean()


def drawn_projection(width: int, teacher_width: int, generator: torch.Generator) -> nn.Linear:
    """Return a layer from states of the student's width to those of the teacher's, without a bias at first."""
    layer = nn.Linear(width, teacher_width)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(teacher_width, width, generator=generator, device="cpu") / width**0.5)
        layer.bias.zero_()
    return layer


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood of labels (rows, length) by logits (…, vocabulary), without UNLABELLED."""
    labelled = labels != UNLABELLED

    def loss(piece: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(piece.float(), targets)

    return losses.in_pieces(loss, logits[labelled], labels[labelled])
