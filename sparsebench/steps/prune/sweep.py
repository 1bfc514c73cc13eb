"""A sweep: makes all variants of a model that are asked for, and does expensive work once for all of them.

Methods that use only the weights go tensor by tensor: the weights are read once (twice or three times for a global
threshold, which must be known before the first tensor is written). One tensor is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.topology import Part, View, prunable_parts
from sparsebench.steps.contract import Context, Emit, Step, StepProgress, reported
from sparsebench.steps.outputs import VariantWriters, run_passes
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
    own_runs = {step: methods()[step.name].run for step in targets if methods()[step.name].run}
    for path in dict.fromkeys(own_runs.values()):
        resolve_name(path)(parent, {step: targets[step] for step in own_runs if own_runs[step] == path}, context, emit)
    steps = [step for step in targets if step not in own_runs]
    if not steps:
        return
    checkpoint = float_checkpoint(parent, "prune first, then quantize")
    parts = prunable_parts(checkpoint, context.family)
    calibrated = [step for step in steps if step.settings.reads_text()]
    by_weights = [step for step in steps if step not in calibrated]

    def tensorwise(outputs: VariantWriters) -> dict[str, Any]:
        TensorSweep(checkpoint, parts, by_weights, context.seed).run(outputs, context.progress)
        return {"seed": context.seed}

    def blockwise(outputs: VariantWriters) -> dict[str, Any]:
        text, propagate = context.text(calibrated[0].name), calibrated[0].settings.propagate
        settings = (text.batch, context.seed, propagate, context.dtype, context.device)
        BlockSweep(checkpoint, parts, context.family, calibrated, *settings).run(outputs, context.progress)
        return {"seed": context.seed, "propagate": propagate, "dtype": context.dtype, **text.provenance()}

    passes = ((by_weights, tensorwise), (calibrated, blockwise))
    run_passes(targets, passes, partial(VariantWriters, checkpoint), context.family, emit)


class TensorSweep:
    """A sweep of random, magnitude and similar methods over one checkpoint, whose tensors ``parts`` describes."""

    def __init__(self, checkpoint: Checkpoint, parts: dict[str, Part], targets: list[Step], seed: int) -> None:
        self.checkpoint = checkpoint
        self.parts = parts
        self.seed = seed
        self.sweeps: dict[str, list[Step]] = {}
        for step in targets:
            self.sweeps.setdefault(step.name, []).append(step)
        self.scores: dict[str, Score] = {name: methods()[name].load_score() for name in self.sweeps}
        stored = {checkpoint.tensors[name].dtype for name, part in parts.items() if part.prunable}
        # Keys compare across all prunable tensors: in 16 bits only where all weights share a 16-bit dtype.
        self.keys_of = narrow_keys if len(stored) == 1 and stored <= {"BF16", "F16"} else keys

    def run(self, outputs: VariantWriters, progress: StepProgress | None = None) -> None:
        """Write every tensor of every variant."""
        model_thresholds = self._global_thresholds(outputs)
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

        for method, method_targets in self.sweeps.items():
            targets = outputs.live(method_targets)
            if not targets:
                continue
            try:
                scores = self.scores[method](Layer(view.name, weights, self.seed))
            except SparsebenchError as error:  # fails this method only
                outputs.give_up(targets, error)
                continue
            limits = {target: model_thresholds[target] for target in targets if target in model_thresholds}
            too_fine = scores.dtype.itemsize == 8  # for the keys of ``thresholds``
            by_tensor = [target for target in targets if _has_tensor_threshold(target) and not too_fine]
            score_keys = self.keys_of(scores, view.name) if limits or by_tensor else scores
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
            by_mask = [target for target in targets if target not in limits]
            quotas = [Quota.of(target.settings, target.settings.sparsity) for target in by_mask]
            for target, choice in zip(by_mask, masks.choose(scores, quotas, view.name, weights), strict=True):
                write(target, zeroed(weights, choice.mask), int(choice.mask.count_nonzero()), choice.notes)

    def _global_thresholds(self, outputs: VariantWriters) -> dict[Step, KeyThreshold]:
        """Return the exact threshold over all prunable weights of each global target; a method may fail alone."""
        model_thresholds: dict[Step, KeyThreshold] = {}
        for method, keep_zeros in product(self.sweeps, (False, True)):
            steps = [step for step in self.sweeps[method] if step.settings.granularity == "global"]
            targets = [step for step in steps if step.settings.keep_zeros == keep_zeros]
            if targets:
                ranks = [masks.count(target.settings.sparsity, self._competing(keep_zeros)) for target in targets]
                passes = (self._all_keys(method, keep_zeros) for _ in range(2))
                try:
                    model_thresholds |= zip(targets, thresholds(passes, ranks), strict=True)
                except SparsebenchError as error:
                    outputs.give_up(targets, error)
        return model_thresholds

    def _competing(self, keep_zeros: bool) -> int:
        """Count the prunable weights; with ``keep_zeros`` only those that are not zero."""
        names = [name for name, part in self.parts.items() if part.prunable]
        zeros = sum(zeros_in(piece) for name in names for piece in self.checkpoint.pieces(name)) if keep_zeros else 0
        return sum(self.checkpoint.tensors[name].numel for name in names) - zeros

    def _all_keys(self, method: str, keep_zeros: bool) -> Iterator[torch.Tensor]:
        for view in (view for part in self.parts.values() for view in part.views):
            weights = self._weights(view)
            score_keys = self.keys_of(self.scores[method](Layer(view.name, weights, self.seed)), view.name)
            yield score_keys[weights != 0] if keep_zeros else score_keys

    def _weights(self, view: View) -> torch.Tensor:
        return view.to_matrix(self.checkpoint.load(view.tensor, view.expert))


def _has_tensor_threshold(target: Step) -> bool:
    """Return whether one threshold for each tensor gives the step's mask."""
    settings: Prune = target.settings
    return settings.granularity == "layer" and settings.pattern == "unstructured" and not settings.keep_zeros
