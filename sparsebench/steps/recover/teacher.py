"""What teachers say of the samples, at once or kept on the disk, and the loss that follows from it.

Of several, the loss is the mean of the divergences from each. Over the whole vocabulary the divergence from the mean of their
probabilities differs from that by what does not depend on the student, so that its gradient is the same. Where the likeliest
tokens are kept, each teacher's are its own, and so is what counts as all others. (TextBrewer's MultiTeacherDistiller averages
logits, which is another mean of the same probabilities.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sparsebench.errors import UnsupportedError
from sparsebench.steps.recover import PREDICTS, SEVERAL, losses
from sparsebench.steps.recover.reading import NONE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparsebench.manifest.schema import Family
    from sparsebench.steps.recover.reading import TrainingText

ATTENTION = ("attention_mse", "attention_ce")
FLOWS = ("fsp", "nst")
SINGLE: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "hidden_mse": losses.hidden_mse,
    "cos": losses.cos,
    "attention_mse": losses.attention_mse,
    "attention_ce": losses.attention_ce,
}
PAIRED = {"fsp": losses.fsp, "nst": losses.nst}


@dataclass(frozen=True)
class ModelOutputs:
    """What a model gives for some samples: ``logits`` (rows, length, vocabulary), None of an encoder; ``states`` before the first
    block and after each, ``attentions`` of each block where they were asked for, of the side that the outputs belong to."""

    logits: torch.Tensor | None
    states: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor, ...]


def ask(
    model: PreTrainedModel, family: Family, given: dict[str, torch.Tensor], attentions: bool = False
) -> ModelOutputs:
    """Run a model; of an encoder the body alone."""
    called: Any = model.base_model if family == "encoder" else model
    quiet = {} if family == "encoder" else {"use_cache": False}
    found = called(**given, **quiet, output_hidden_states=True, output_attentions=attentions)
    side = "decoder_" if family == "encoder-decoder" else ""
    return ModelOutputs(
        getattr(found, "logits", None), found[f"{side}hidden_states"], found[f"{side}attentions"] if attentions else ()
    )


class TeacherCache:
    """One teacher's likeliest tokens at every place of the samples, in two files: ids int32 and logarithms float32, (samples,
    length, k). What a killed process has left is not asked for again: what it wrote is the system's."""

    def __init__(self, folder: Path, samples: int, length: int, count: int) -> None:
        shape = (samples, length, count)
        self.ids = _file(folder / "ids.npy", np.int32, shape)
        self.logs = _file(folder / "logs.npy", np.float32, shape)
        self.done = _file(folder / "done.npy", np.bool_, (samples,))

    def put(self, rows: Sequence[int], ids: torch.Tensor, logs: torch.Tensor) -> None:
        """Keep what was said of some samples."""
        length = ids.shape[1]
        self.ids[list(rows), :length] = ids.numpy()
        self.logs[list(rows), :length] = logs.numpy()
        self.done[list(rows)] = True

    def get(self, rows: Sequence[int], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What was said of some samples: ids int64 and logarithms."""
        return (
            torch.from_numpy(self.ids[list(rows), :length].astype(np.int64)),
            torch.from_numpy(np.array(self.logs[list(rows), :length])),
        )


def _file(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    mode: Any = "r+" if path.is_file() else "w+"
    found: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode, dtype, shape)
    return found


def mapped(student: int, teacher: int, layers: str | list[list[int]], least: int = 0) -> list[tuple[int, int]]:
    """The student's layers, from 1, each with the teacher's that it is compared with: all of them evenly, the last alone, or the
    pairs that are named. Raises UnsupportedError for a pair that lies outside, or below the ``least`` number.
    """
    if layers == "last":
        return [(student, teacher)]
    if not isinstance(layers, str):
        for one, other in layers:
            if not (least <= one <= student and least <= other <= teacher):
                raise UnsupportedError(
                    f"layers: [{one}, {other}]: the model has {student} layers, and the teacher {teacher}",
                    f"pairs of the model's and the teacher's, from {least} on",
                )
        return [(one, other) for one, other in layers]
    # Of a much shallower teacher the first layers round to 0, which has states and no attention.
    return [(layer, max(least, round(layer * teacher / student))) for layer in range(1, student + 1)]


@dataclass
class Distillation:
    """The loss of a student: what its logits (an encoder's last states) differ from the teachers', its own loss, and a match.

    Without ``teachers`` all that is needed of them is ``kept``, each one's apart.
    """

    model: PreTrainedModel
    teachers: list[PreTrainedModel]
    family: Family
    text: TrainingText
    settings: dict[str, Any]
    device: torch.device
    kept: list[TeacherCache] = field(default_factory=list)
    projections: nn.ModuleList = field(default_factory=nn.ModuleList)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    parameters: float = 0.0
    """Those that a token meets, of all teachers together."""
    steps: int = 0
    """Of the training."""
    asked: int = 0
    """Tokens that each teacher was asked about, where what it says is kept."""

    def prepare(self, seed: int, steps: int) -> None:
        """Of a training of so many ``steps``: find which layers are matched, with a linear projection each where widths differ.

        Raises UnsupportedError where the match cannot be had of these two models.
        """
        match, asked = self.settings["match"], self.settings
        if self.family == "encoder" and (asked["alpha"] < 1 or "alpha_schedule" in asked):
            raise UnsupportedError(*PREDICTS)
        self.steps = steps
        if self.family == "encoder" and len(self.teachers) > 1:
            raise UnsupportedError(*SEVERAL)
        if match == "none":
            if self.family == "encoder":
                self._same_widths("an encoder's last states are compared as they are", "name a `match` beside")
            return
        (teacher,) = self.teachers
        if match in ATTENTION:
            for model in (self.model, teacher):
                model.set_attn_implementation("eager")
        with torch.no_grad():
            own, theirs = (ask(one, self.family, self._given([0]), match in ATTENTION) for one in (self.model, teacher))
        if match in ATTENTION:
            self.pairs = mapped(len(own.attentions), len(theirs.attentions), self.settings["layers"], 1)
            heads = [said.attentions[0].shape[1] for said in (own, theirs)]
            if heads[0] != heads[1]:
                raise UnsupportedError(
                    f"match: {match} compares heads, of which the model has {heads[0]} and the teacher {heads[1]}",
                    "match: hidden_mse, or nst",
                )
            return
        self.pairs = mapped(len(own.states) - 1, len(theirs.states) - 1, self.settings["layers"])
        if match in FLOWS and len(self.pairs) < 2:
            raise UnsupportedError(f"match: {match} compares pairs of layers, and there is one", "layers: uniform")
        if match == "nst":
            return  # its Gram matrices are of tokens
        draw = torch.Generator().manual_seed(seed)
        for one, other in self.pairs:
            width, wanted = own.states[one].shape[-1], theirs.states[other].shape[-1]
            if width == wanted:
                continue
            layer = nn.Linear(width, wanted)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(wanted, width, generator=draw, device="cpu") / width**0.5)
                layer.bias.zero_()
            self.projections.append(layer.to(self.device))

    def _same_widths(self, why: str, way: str) -> None:
        sizes = [getattr(one.config, "hidden_size", None) for one in (self.model, *self.teachers)]
        if sizes[0] != sizes[1]:
            raise UnsupportedError(f"{why}, and they have {sizes[0]} and {sizes[1]} numbers", way)

    def keep(
        self, teacher: PreTrainedModel, folder: Path, rows: Sequence[int], tell: Callable[[int, int], None]
    ) -> None:
        """Ask a teacher for its likeliest tokens in all samples; afterwards it is not needed any more."""
        length = self.text.mask(range(self.text.samples)).shape[1]
        count = min(self.settings["top_k"], teacher.config.get_text_config().vocab_size)
        folder.mkdir(exist_ok=True)
        kept = TeacherCache(folder, self.text.samples, length, count)
        self.kept.append(kept)
        counts = self.text.counts()
        self.asked = sum(counts[row] for row in rows)
        todo = [row for row in rows if not kept.done[row]]
        done = 0
        for group in self.text.groups(todo):
            said = self._teach(teacher, self._given(group))
            assert said.logits is not None
            ids, logs = losses.likeliest(said.logits, count, self.settings["temperature"])
            kept.put(group, ids.cpu(), logs.cpu())
            done += len(group)
            tell(done, len(todo))

    def _teach(self, teacher: PreTrainedModel, given: dict[str, torch.Tensor]) -> ModelOutputs:
        with torch.no_grad():
            return ask(teacher, self.family, given, self.settings["match"] in ATTENTION)

    def _given(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in self.text.given(rows).items()}

    def __call__(self, rows: Sequence[int], number: int) -> torch.Tensor:
        """The loss on some samples."""
        own, match = self.settings, self.settings["match"]
        given, mask = self._given(rows), self.text.mask(rows).to(self.device)
        said = ask(self.model, self.family, given, match in ATTENTION)
        theirs = [self._teach(one, given) for one in self.teachers]
        if self.family == "encoder":
            same = said.states[-1].shape[-1] == theirs[0].states[-1].shape[-1]
            # Where widths differ, the match with its projections is all there is.
            nothing = torch.zeros((), device=self.device)
            total = losses.relative(said.states[-1], theirs[0].states[-1], mask) if same else nothing
        else:
            assert said.logits is not None
            alpha = self.alpha(number)
            total = alpha * self._divergence(said.logits, theirs, rows, mask)
            if alpha < 1:
                wanted = self.text.next_tokens(rows).to(self.device)
                total = total + (1 - alpha) * cross_entropy(said.logits, wanted)
        if match != "none":
            total = total + own["match_weight"] * self._matched(said, theirs[0], mask)
        return total

    def alpha(self, number: int) -> float:
        """The teacher's part in a step's loss; of what is held out (-1) the same all the time, so that its losses compare."""
        whole: float = self.settings["alpha"]
        way = self.settings.get("alpha_schedule")
        if way is None or number < 0:
            return whole
        return whole * (number / self.steps if way == "linear_growth" else 1 - number / self.steps)

    def _divergence(
        self, logits: torch.Tensor, theirs: Sequence[ModelOutputs], rows: Sequence[int], mask: torch.Tensor
    ) -> torch.Tensor:
        """The mean of the divergences from each teacher."""
        own, told = self.settings, []
        for said in theirs:
            assert said.logits is not None
            told.append(losses.likeliest(said.logits, own["top_k"] or None, own["temperature"]))
        told += [kept.get(rows, mask.shape[1]) for kept in self.kept]
        said_here = logits[mask]
        kl = partial(losses.kl, temperature=own["temperature"])
        each = [
            losses.in_pieces(kl, said_here, ids.to(self.device)[mask], logs.to(self.device)[mask]) for ids, logs in told
        ]
        return torch.stack(each).mean()

    def _matched(self, said: ModelOutputs, theirs: ModelOutputs, mask: torch.Tensor) -> torch.Tensor:
        """The mean of the match over the layers, or over pairs of layers that follow one another."""
        match, attentive = self.settings["match"], self.settings["match"] in ATTENTION
        projections = iter(self.projections)
        compared: list[tuple[torch.Tensor, torch.Tensor]] = []
        for one, other in self.pairs:
            if attentive:
                compared.append((said.attentions[one - 1], theirs.attentions[other - 1]))
                continue
            left, right = said.states[one], theirs.states[other]
            if match != "nst" and left.shape[-1] != right.shape[-1]:
                left = next(projections)(left)
            compared.append((left, right))
        if match in SINGLE:
            found = [SINGLE[match](left, right, mask) for left, right in compared]
        else:
            found = [
                PAIRED[match]((before[0], after[0]), (before[1], after[1]), mask)
                for before, after in pairwise(compared)
            ]
        return torch.stack(found).mean()


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood of the labels (rows, length), NONE left out, by logits (rows, length, vocabulary)."""
    asked = labels != NONE

    def loss(piece: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(piece.float(), wanted)

    return losses.in_pieces(loss, logits[asked], labels[asked])
