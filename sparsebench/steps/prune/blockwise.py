"""Calibrated methods: calibration text goes through the model block by block, once for a whole sweep.

``propagate: pruned``, as published, gives every variant its own inputs: the outputs of its own pruned blocks before.
``propagate: dense`` takes the unpruned model's inputs for all variants, so that all methods and sparsities share
statistics, factorisations and the pass itself.

OWL (Yin et al. 2023, Outlier Weighed Layerwise Sparsity, arXiv:2310.05175) allocates a model's sparsity to its blocks: one
with more outliers among its Wanda scores keeps more weights. The paper's "layer" is called a block here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.building import activations_beside
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.replay.batch import Batch
from sparsebench.models.shape.topology import BlockId, Part
from sparsebench.steps.contract import Step, StepProgress
from sparsebench.steps.finite import check_weights
from sparsebench.steps.outputs import VariantWriters
from sparsebench.steps.prune import masks
from sparsebench.steps.prune.contract import Layer, Quota, Solution
from sparsebench.steps.prune.methods.scores import wanda_scores
from sparsebench.steps.prune.registry import Method, methods
from sparsebench.steps.prune.settings import Prune
from sparsebench.steps.zeroing import zeroed, zeros_in

if TYPE_CHECKING:
    from sparsebench.models.replay.blockwise import Block, Replay
    from sparsebench.models.replay.gather import InputStatistics


@dataclass
class BlockSweep:
    """A sweep whose variants share a calibration: the model reads ``batch`` and calculates in ``dtype`` on ``device``.

    ``sparsities`` are those of OWL's variants, by block. ``unreached`` has the experts' matrices that no token reached.
    Blocks, statistics and solutions stay on that device; each matrix is moved to the CPU when it is written.
    """

    checkpoint: Checkpoint
    parts: dict[str, Part]
    family: Family
    targets: list[Step]
    batch: Batch
    seed: int = 0
    propagate: str = "pruned"
    dtype: str = "auto"
    device: str = "cpu"
    sparsities: dict[Step, dict[BlockId, float]] = field(default_factory=dict)
    unreached_method: ClassVar[str] = "pruned by magnitude"
    unreached: dict[Step, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.views = {view.name: view for part in self.parts.values() for view in part.views}

    def run(self, outputs: VariantWriters, progress: StepProgress | None = None) -> None:
        """Write every tensor of every variant."""
        passes = 2 if self._owl_targets() else 1
        streams = len(self.targets) if self.propagate == "pruned" else 1
        with activations_beside(next(iter(outputs.folders.values()))) as spill:
            if passes == 2:
                self._allocate(self._replay(1, spill), _progress_of_pass(progress, 0, passes))
            visit = self._visit_pruned if self.propagate == "pruned" else self._visit_dense
            last_progress = _progress_of_pass(progress, passes - 1, passes)
            self._replay(streams, spill).run(lambda block: visit(block, outputs), last_progress)
        for target, names in self.unreached.items():
            outputs.notes[target].add(
                f"{len(names)} expert matrices that no calibration token reached are {self.unreached_method}"
                f" (the first is {min(names)})"
            )
        for name in outputs.missing:
            if self.parts[name].prunable:
                raise ModelError(
                    f"tensor {name}: it is prunable but belongs to no transformer block, so no calibration text reaches it",
                    "leave this model out of `models`, or use a method without calibration",
                )
            outputs.copy_shared(name)

    def _owl_targets(self) -> list[Step]:
        """Return the steps whose sparsity is spread over the blocks by their outliers."""
        return [target for target in self.targets if getattr(target.settings, "allocation", "") == "owl"]

    def _method(self, target: Step) -> Method:
        return methods()[target.name]

    def _replay(self, streams: int, spill: Path) -> Replay:
        from sparsebench.models.replay.blockwise import Replay

        return Replay(self.checkpoint, self.family, self.batch, streams, spill, self.dtype, device=self.device)

    def _allocate(self, replay: Replay, progress: StepProgress | None) -> None:
        """Make a first pass over the dense model: each block's share of outliers decides its sparsity."""
        multiples = sorted({target.settings.outlier for target in self._owl_targets()})
        counts: dict[BlockId, tuple[dict[float, int], int, int]] = {}  # outliers, weights, and those that are not zero

        def visit(block: Block) -> None:
            inputs = block.observe(0, gram=False)
            layers = [self._layer(block, name, inputs[name]) for group in block.groups for name in group]
            weights = sum(layer.weights.numel() for layer in layers)
            nonzeros = sum(int(layer.weights.count_nonzero()) for layer in layers)
            counts[block.stack, block.index] = count_outliers(layers, multiples), weights, nonzeros

        replay.run(visit, progress)
        for target in self._owl_targets():
            settings: Prune = target.settings
            shares = [outliers[settings.outlier] / max(weights, 1) for outliers, weights, _ in counts.values()]
            sizes = [nonzeros if settings.keep_zeros else weights for _, weights, nonzeros in counts.values()]
            sparsities = owl_sparsities(shares, sizes, settings.sparsity or 0, settings.spread)
            self.sparsities[target] = dict(zip(counts, sparsities, strict=True))

    def _visit_dense(self, block: Block, outputs: VariantWriters) -> None:
        for names in block.portions(self._needs_gram):
            inputs = block.observe(0, gram=self._needs_gram, names=names)
            for target, layer, solution in self._solutions(block, inputs, outputs.live(self.targets), outputs):
                self._write(outputs, target, layer, self.views[layer.name].to_stored(solution.weights), solution)
            del inputs
        self._write_rest(block, outputs)

    def _visit_pruned(self, block: Block, outputs: VariantWriters) -> None:
        """Prune the block for each variant in turn; the inputs of the first block are the same, and observed once."""
        live = outputs.live(self.targets)
        target_groups = [live] if block.same_inputs else [[target] for target in live]
        for targets in target_groups:
            changed: dict[Step, dict[str, torch.Tensor]] = {target: {} for target in targets}
            for names in block.portions(self._needs_gram):
                stream = self.targets.index(targets[0])
                live = outputs.live(targets)
                if not live:
                    break
                try:
                    inputs = block.observe(stream, self._needs_gram, only_inputs=True, names=names)
                except SparsebenchError as error:  # caused by these variants' own weights
                    outputs.give_up(live, error)
                    break
                for target, layer, solution in self._solutions(block, inputs, live, outputs):
                    stored = self.views[layer.name].to_stored(solution.weights)
                    changed[target][layer.name] = stored
                    self._write(outputs, target, layer, stored, solution)
                del inputs
            for target in outputs.live(targets):
                try:
                    block.advance(self.targets.index(target), changed.pop(target))
                except SparsebenchError as error:  # its own weights may have made its activations infinite
                    outputs.give_up([target], error)
        for target in outputs.errors:
            block.drop(self.targets.index(target))
        self._write_rest(block, outputs)

    def _solutions(
        self, block: Block, inputs: dict[str, InputStatistics], targets: list[Step], outputs: VariantWriters
    ) -> Iterator[tuple[Step, Layer, Solution]]:
        """Yield pruned weights (out, in) of the block's layers, group by group.

        Methods that overwrite the statistics come last. A variant whose solution is an error, or whose method fails, is
        given up.
        """
        order = sorted({self._method(target) for target in targets}, key=lambda method: (method.consumes, method.name))
        for group in block.groups:
            layers = [self._layer(block, name, inputs[name]) for name in group]
            reached = bool(inputs[group[0]].tokens)
            for method in order:
                active = outputs.live(target for target in targets if self._method(target) == method)
                if not reached:
                    for target in active:
                        self.unreached.setdefault(target, set()).update(group)
                quotas = [self._quota(target, (block.stack, block.index)) for target in active]
                try:
                    solved = solve_quotas(method, layers, quotas) if reached else self._solve_unreached(layers, quotas)
                    for layer, solutions in zip(layers, solved, strict=True):
                        for target, solution in zip(active, solutions, strict=True):
                            if isinstance(solution, SparsebenchError):
                                outputs.give_up(outputs.live([target]), solution)
                            elif target not in outputs.errors:
                                yield target, layer, solution
                except SparsebenchError as error:
                    outputs.give_up(outputs.live(active), error)
            inputs[group[0]].gram = None  # shared by this group alone, and as large as a layer

    def _layer(self, block: Block, name: str, inputs: InputStatistics) -> Layer:
        return Layer(name, block.matrix(name), self.seed, inputs)

    def _quota(self, target: Step, block: BlockId) -> Quota:
        sparsity = self.sparsities[target][block] if target in self.sparsities else target.settings.sparsity
        return Quota.of(target.settings, sparsity)

    def _solve_unreached(self, layers: list[Layer], quotas: list[Quota]) -> Iterator[list[Solution | SparsebenchError]]:
        """Return solutions for expert matrices that no token reached."""
        return solve_quotas(methods()["magnitude"], layers, quotas)

    def _write(
        self, outputs: VariantWriters, target: Step, layer: Layer, stored: torch.Tensor, solution: Solution
    ) -> None:
        on_cpu = stored.cpu()
        outputs.write(target, self.views[layer.name], on_cpu, zeros_in(on_cpu), solution.notes)

    def _write_rest(self, block: Block, outputs: VariantWriters) -> None:
        for name, tensor in block.tensors.items():
            if not self.parts[name].prunable:
                outputs.write_shared(name, tensor.cpu())

    @property
    def _needs_gram(self) -> bool:
        return any(self._method(target).needs == "gram" for target in self.targets)


def solve_quotas(
    method: Method, layers: list[Layer], quotas: list[Quota]
) -> Iterator[list[Solution | SparsebenchError]]:
    """Yield each layer's solutions, by the method's own solver or by masking its lowest scores."""
    if method.solve:
        solved: Sequence[Sequence[Solution | SparsebenchError]] = method.load_solve()(layers, quotas)
        for layer, solutions in zip(layers, solved, strict=True):
            yield [_zeros_kept(layer, quota, solution) for quota, solution in zip(quotas, solutions, strict=True)]
        return
    score = method.load_score()
    for layer in layers:
        chosen = masks.choose(score(layer), quotas, layer.name, layer.weights)
        yield [Solution(zeroed(layer.weights, choice.mask), choice.notes) for choice in chosen]


def _zeros_kept(layer: Layer, quota: Quota, solution: Solution | SparsebenchError) -> Solution | SparsebenchError:
    """Return the solution; an error where a quota keeps zeros but the solver (a plugin's, say) gave one a value."""
    if isinstance(solution, Solution) and quota.keep_zeros and bool(solution.weights[layer.weights == 0].any()):
        problem = f"{layer.name}: the method gives weights that were zero a value"
        return UnsupportedError(problem, "leave out `keep_zeros`, or choose another method")
    return solution


def _progress_of_pass(progress: StepProgress | None, number: int, passes: int) -> StepProgress | None:
    """Return a progress callback for pass ``number`` of ``passes`` passes over the blocks."""
    if progress is None:
        return None
    return lambda done, total, detail="": progress(number * total + done, passes * total, detail)


def count_outliers(layers: Sequence[Layer], multiples: Sequence[float]) -> dict[float, int]:
    """Count a block's Wanda scores above each of ``multiples`` times their mean.

    The mean is over all linear ``layers`` of the block together. Scores are computed twice, so that only one layer's
    are in memory at a time. Raises ModelError, naming the tensor, for NaN or infinite weights or inputs.
    """
    check_weights(layers)
    weight_count = sum(layer.weights.numel() for layer in layers)
    total = sum(float(wanda_scores(layer).sum(1).double().sum()) for layer in layers)
    outliers = dict.fromkeys(multiples, 0)
    for layer in layers:
        scores = wanda_scores(layer)
        for multiple in multiples:
            outliers[multiple] += int((scores > multiple * total / max(weight_count, 1)).sum())
    return outliers


def owl_sparsities(shares: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float) -> list[float]:
    """Return the sparsity s_l of each block, from its share D_l of outliers and its number n_l of weights (``sizes``).

    d_l = (D_l − min D) / (max D − min D) · 2·spread,  s_l = clip(s + c − d_l, 0, 1)

    The paper has c = mean(d) without clipping, which exceeds 1 above a sparsity of about 92%, and gives all blocks the
    same weight whatever their size. Here c is chosen so that Σ n_l·s_l = s·Σ n_l. Both agree where blocks have equal
    sizes and nothing is clipped.
    """
    lowest_share = min(shares)
    range_of_shares = max(shares) - lowest_share
    unshifted_sparsities = [sparsity] * len(shares)
    if range_of_shares > 0:
        unshifted_sparsities = [sparsity - (share - lowest_share) / range_of_shares * 2 * spread for share in shares]
    shift = _shift(unshifted_sparsities, sizes, sparsity * sum(sizes))
    return [_clip(block_sparsity + shift) for block_sparsity in unshifted_sparsities]


def _clip(sparsity: float) -> float:
    return min(max(sparsity, 0.0), 1.0)


def _shift(sparsities: Sequence[float], sizes: Sequence[int], total: float) -> float:
    """Return c with Σ sizes·clip(values + c) = ``total``; between clipping points the sum grows linearly with c."""
    clipping_points = sorted([-sparsity for sparsity in sparsities] + [1 - sparsity for sparsity in sparsities])

    def removed(shift: float) -> float:
        return sum(size * _clip(sparsity + shift) for sparsity, size in zip(sparsities, sizes, strict=True))

    before = clipping_points[0]
    for clipping_point in clipping_points:
        if removed(clipping_point) >= total:
            break
        before = clipping_point
    low, high = removed(before), removed(clipping_point)
    return clipping_point if high <= low else before + (total - low) / (high - low) * (clipping_point - before)
