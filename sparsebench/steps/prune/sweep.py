"""A sweep: makes all variants of a model that are asked for, and does expensive work once for all of them.

Methods that use only the weights go tensor by tensor: the weights are read once (twice or three times for a global
threshold, which must be known before the first tensor is written). One tensor is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.topology import Part, View, checked_parts
from sparsebench.steps.contract import Context, Emit, Step, StepProgress, reported
from sparsebench.steps.outputs import VariantWriters, run_pass
from sparsebench.steps.prune import masks
from sparsebench.steps.prune.blockwise import BlockSweep
from sparsebench.steps.prune.contract import Layer, Quota, Score
from sparsebench.steps.prune.keys import KeyThreshold, keys, narrow_keys, thresholds
from sparsebench.steps.prune.registry import methods
from sparsebench.steps.prune.settings import Prune
from sparsebench.steps.zeroing import zeroed, zeroed_below, zeros_in


def make_pruned(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every pruning step of one pass over the model in ``parent``, each in its folder.

    Raises ModelError for a quantized model, and UnsupportedError for an architecture.
    """
    first = next(iter(targets))
    if run := methods()[first.name].run:
        resolve_name(run)(parent, targets, context, emit)
        return
    checkpoint = float_checkpoint(parent, "prune first, then quantize")
    parts = checked_parts(checkpoint, context.family)

    def write(outputs: VariantWriters) -> dict[str, Any]:
        if not first.settings.reads_text():
            TensorSweep(checkpoint, parts, [*targets], context.seed).run(outputs, context.progress)
            return {"seed": context.seed}
        text, propagate = context.text(first.name), first.settings.propagate
        settings = (text.batch, context.seed, propagate, context.dtype, context.device)
        BlockSweep(checkpoint, parts, context.family, [*targets], *settings).run(outputs, context.progress)
        return {"seed": context.seed, "propagate": propagate, "dtype": context.dtype, **text.provenance()}

    run_pass(targets, write, partial(VariantWriters, checkpoint), context.family, emit)


class TensorSweep:
    """A sweep of one method that looks at weights alone over a checkpoint, whose tensors ``parts`` describes."""

    def __init__(self, checkpoint: Checkpoint, parts: dict[str, Part], targets: list[Step], seed: int) -> None:
        self.checkpoint, self.parts, self.targets, self.seed = checkpoint, parts, targets, seed
        self.score: Score = methods()[targets[0].name].load_score()
        stored = {checkpoint.tensors[name].dtype for name, part in parts.items() if part.prunable}
        # Keys compare across all prunable tensors: in 16 bits only where all weights share a 16-bit dtype.
        self.keys_of = narrow_keys if len(stored) == 1 and stored <= {"BF16", "F16"} else keys

    def run(self, outputs: VariantWriters, progress: StepProgress | None = None) -> None:
        """Write every tensor of every variant."""
        model_thresholds = self._global_thresholds()
        for name in reported([*self.checkpoint.tensors], progress):
            part = self.parts[name]
            for view in part.views:
                self._prune(view, model_thresholds, outputs)
            if not part.prunable:
                outputs.copy_shared(name)

    def _prune(self, view: View, model_thresholds: dict[Step, KeyThreshold], outputs: VariantWriters) -> None:
        """Write all variants of one matrix, and deduct the ties that it uses from those in ``model_thresholds``."""
        weights = self._weights(view)

        def write(target: Step, pruned: torch.Tensor, removed: int, notes: tuple[str, ...] = ()) -> None:
            outputs.write(target, view, view.to_stored(pruned), removed, notes)

        scores = self._scores(view, weights)
        too_fine = scores.dtype.itemsize == 8  # for the keys of ``thresholds``
        by_tensor = [target for target in self.targets if _has_tensor_threshold(target) and not too_fine]
        score_keys = self.keys_of(scores, view.name) if model_thresholds or by_tensor else scores
        limits = dict(model_thresholds)
        if by_tensor:
            ranks = [masks.count(target.settings.sparsity, score_keys.numel()) for target in by_tensor]
            limits |= zip(by_tensor, thresholds([[score_keys], [score_keys]], ranks), strict=True)
        for target, threshold in limits.items():
            # A zero that stays a zero must not use up one of the ties.
            compared = score_keys.masked_fill(weights == 0, -1) if target.settings.keep_zeros else score_keys
            pruned, removed, spent = zeroed_below(weights, compared, threshold)
            if target in model_thresholds:
                model_thresholds[target] = KeyThreshold(threshold.key, threshold.ties - spent)
            write(target, pruned, removed)
        by_mask = [target for target in self.targets if target not in limits]
        quotas = [Quota.of(target.settings, target.settings.sparsity) for target in by_mask]
        for target, choice in zip(by_mask, masks.choose(scores, quotas, view.name, weights), strict=True):
            write(target, zeroed(weights, choice.mask), int(choice.mask.count_nonzero()), choice.notes)

    def _global_thresholds(self) -> dict[Step, KeyThreshold]:
        """Return the exact threshold over all prunable weights of each global target."""
        model_thresholds: dict[Step, KeyThreshold] = {}
        global_targets = [step for step in self.targets if step.settings.granularity == "global"]
        for keep_zeros in (False, True):
            targets = [step for step in global_targets if step.settings.keep_zeros == keep_zeros]
            if targets:
                ranks = [masks.count(target.settings.sparsity, self._competing(keep_zeros)) for target in targets]
                passes = (self._all_keys(keep_zeros) for _ in range(2))
                model_thresholds |= zip(targets, thresholds(passes, ranks), strict=True)
        return model_thresholds

    def _competing(self, keep_zeros: bool) -> int:
        """Count the prunable weights; with ``keep_zeros`` only those that are not zero."""
        names = [name for name, part in self.parts.items() if part.prunable]
        zeros = sum(zeros_in(piece) for name in names for piece in self.checkpoint.pieces(name)) if keep_zeros else 0
        return sum(self.checkpoint.tensors[name].numel for name in names) - zeros

    def _all_keys(self, keep_zeros: bool) -> Iterator[torch.Tensor]:
        for view in (view for part in self.parts.values() for view in part.views):
            weights = self._weights(view)
            score_keys = self.keys_of(self._scores(view, weights), view.name)
            yield score_keys[weights != 0] if keep_zeros else score_keys

    def _scores(self, view: View, weights: torch.Tensor) -> torch.Tensor:
        return self.score(Layer(view.name, weights, self.seed))

    def _weights(self, view: View) -> torch.Tensor:
        return view.to_matrix(self.checkpoint.load(view.tensor, view.expert))


def _has_tensor_threshold(target: Step) -> bool:
    """Return whether one threshold for each tensor gives the step's mask."""
    settings: Prune = target.settings
    return settings.granularity == "layer" and settings.pattern == "unstructured" and not settings.keep_zeros
