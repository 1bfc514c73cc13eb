"""Group the neurons of every feed-forward part, and write the folders that hold the grouping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.building import activations_beside
from sparsebench.models.files.checkpoint import Checkpoint, torch_dtype
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.files.writing import copy_checkpoint
from sparsebench.models.modules.moefied import ExpertRouter
from sparsebench.models.modules.skipping import ExpertsConfig, FeedForward, skips_weights
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.replay.skeleton import SkeletonBlock, build_skeleton, fill_skeleton
from sparsebench.models.shape.topology import Part, checked_parts
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Activity, Context, Emit, Step
from sparsebench.steps.counting import step_report
from sparsebench.steps.finite import check_finite
from sparsebench.steps.moefy import routers
from sparsebench.steps.moefy.activity import activity_of
from sparsebench.steps.moefy.grouping import group_neurons
from sparsebench.steps.moefy.routers import NeuronStatistics
from sparsebench.steps.moefy.settings import COUNTED, Moefy
from sparsebench.steps.outputs import failing_alone
from sparsebench.steps.watching import ActivationHooks, activation_path, refuse_experts


@dataclass(frozen=True)
class FeedForwardPart:
    """One feed-forward part: its modules, its matrices' names by kind, and its block."""

    paths: FeedForward
    matrices: Mapping[str, str]
    stack: str
    layer: int

    def weights(self, matrix: Callable[[str], torch.Tensor], checkpoint: Checkpoint) -> routers.FeedForwardWeights:
        """Return the part's weights, float32; ``matrix`` gives a matrix as (out, in), ``checkpoint`` the biases.

        Raises ModelError, naming the tensor, for NaN or infinite weights.
        """

        def load(kind: str) -> tuple[torch.Tensor, torch.Tensor | None]:
            name = self.matrices[kind]
            bias = name.removesuffix("weight") + "bias"
            weights = matrix(name).float()
            check_finite(weights, name)
            return weights, checkpoint.load(bias).float() if bias in checkpoint.tensors else None

        norms = load("down")[0].norm(dim=0)
        if "gate_up" in self.matrices:
            fused, fused_bias = load("gate_up")
            gate, up = fused.chunk(2)
            gate_bias, up_bias = (None, None) if fused_bias is None else fused_bias.chunk(2)
        else:
            up, up_bias = load("up")
            if "gate" not in self.matrices:
                return routers.FeedForwardWeights(None, up, None, up_bias, norms)
            gate, gate_bias = load("gate")
        return routers.FeedForwardWeights(gate, up, gate_bias, up_bias, norms)


def make_grouped(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every variant, by active share and router, from one grouping.

    Raises UnsupportedError for a mixture of experts, for a number of neurons that is no multiple of the experts, and
    for blocks without a known feed-forward part. Raises ModelError for a quantized parent, for one that leaves weights
    out already, and without text where text is needed.
    """
    started = time.perf_counter()
    checkpoint = float_checkpoint(parent, "start from the model that it was made from")
    if skips_weights(checkpoint.config):
        raise ModelError(f"{parent}: it leaves weights out already", "start from the model that it was made from")
    first = next(iter(targets))
    experts, shared, partition = first.settings.experts, first.settings.shared, first.settings.partition
    tensor_parts = checked_parts(checkpoint, context.family)
    refuse_experts(parent, tensor_parts)
    skeleton = build_skeleton(checkpoint.config, context.family)
    fill_skeleton(skeleton, checkpoint, context.family)
    parts = {block.path: _feed_forward_part(block, tensor_parts, experts) for block in skeleton.blocks}
    text = context.text(f"moefy: {first.name}") if first.settings.reads_text() else None
    assignments: dict[FeedForward, torch.Tensor] = {}
    router_tensors: dict[str, dict[str, torch.Tensor]] = {step.settings.router: {} for step in targets}
    activities: dict[Step, list[Activity]] = {step: [] for step in targets}
    with activations_beside(next(iter(targets.values()))) as spill:
        loaded_parts = _each_part(checkpoint, tensor_parts, parts, context, text, spill)
        for done, (part, matrix, statistics) in enumerate(loaded_parts, start=1):
            weights = part.weights(matrix, checkpoint)
            gram = statistics.gram(first.name) if statistics and first.name in COUNTED else weights.gram()
            grouping = group_neurons(first.name, gram, experts, shared, context.seed, partition)
            assignments[part.paths] = grouping.assignment
            dtype = torch_dtype(checkpoint.tensors[part.matrices["down"]].dtype)
            for router, tensors in router_tensors.items():
                tables = routers.router_tables(router, weights, grouping, experts, statistics, context.seed)
                tensors |= {part.paths.name(name): table.to(dtype) for name, table in tables.items()}
                for step in targets:
                    if statistics and step.settings.router == router:
                        config = _experts_config(step, (part.paths,))
                        router_tables = tables or {"norms": weights.norms}  # the oracle stores none
                        module = ExpertRouter(config, grouping.assignment, router_tables, statistics.function)
                        row = activity_of(part.stack, part.layer, part.paths.down, module, statistics)
                        activities[step].append(row)
            if context.progress:
                context.progress(done, len(parts))
    seconds = time.perf_counter() - started
    provenance = text.provenance() if text else {}
    for step, folder in targets.items():
        with failing_alone(step, emit):
            config = _experts_config(step, tuple(assignments))
            added = {paths.name("assignment"): assignment.to(torch.int32) for paths, assignment in assignments.items()}
            added |= router_tensors[config.router]
            description = {**step.provenance(context.family, context.seed), **provenance}
            copy_checkpoint(parent, folder, config.config(), description, added)
            rows = tuple(activities[step])
            report = step_report(
                folder, context.family, seconds=seconds, sweep_size=len(targets), provenance=provenance
            )
            note = _note(step, config, report.read_share, rows)
            emit(step, replace(report, note=note, already_zero=report.zeros, activity=rows))


def _note(step: Step, config: ExpertsConfig, share: float, rows: Sequence[Activity]) -> str:
    note = (
        f"{config.active} of {config.experts} experts are computed for a token; {share:.1%} of the blocks' weights are "
        "read for it, the router's included; stock transformers loads the folder and computes with all experts"
    )
    if shares := [row.inside for row in rows if row.inside is not None]:
        cut = "METIS" if step.settings.partition == "metis" else "balanced assignment"
        by = f", by {cut}" if step.name == "coactivation" else ""
        note += f"; {sum(shares) / len(shares):.1%} of co-activation lies inside experts{by}"
    return note


def _feed_forward_part(block: SkeletonBlock, parts: Mapping[str, Part], experts: int) -> FeedForwardPart:
    path, module, layers = block.path, block.module, block.prunable
    kinds = {parts[name].kind: name for name in layers if parts[name].kind in ("gate", "up", "gate_up", "down")}
    if "down" not in kinds or not kinds.keys() & {"up", "gate_up"}:
        raise UnsupportedError(f"{path}: no feed-forward part is known in it", "choose another model")
    function_path = activation_path(module, path)
    function = module.get_submodule(function_path)
    if float(function(torch.zeros(1))):
        problem = f"{path}: its activation {type(function).__name__} is not 0 at 0, so neurons cannot be left out"
        raise UnsupportedError(problem, "choose another model")
    neurons = layers[kinds["down"]].width
    if neurons % experts:
        problem = f"{kinds['down']}: {neurons} neurons make no {experts} experts of equal size"
        raise UnsupportedError(problem, "choose a number that divides them")
    paths = {id(child): f"{path}.{name}" for name, child in module.named_modules()}
    layer_paths = {kind: paths[id(layers[name].module)] for kind, name in kinds.items()}
    first = layer_paths.get("gate_up") or layer_paths.get("gate") or layer_paths["up"]
    second = layer_paths["up"] if "gate" in layer_paths else ""
    feed_forward = FeedForward(first, second, layer_paths["down"], f"{path}.{function_path}")
    return FeedForwardPart(feed_forward, kinds, block.stack, block.index)


def _each_part(
    checkpoint: Checkpoint,
    tensor_parts: Mapping[str, Part],
    parts: Mapping[str, FeedForwardPart],
    context: Context,
    text: Calibrated | None,
    spill: Path,
) -> Iterator[tuple[FeedForwardPart, Callable[[str], torch.Tensor], NeuronStatistics | None]]:
    """Yield every part, a function that gives its matrices as (out, in), and its statistics on the text, if any."""
    if text is None:
        for part in parts.values():
            yield part, lambda name: tensor_parts[name].views[0].to_matrix(checkpoint.load(name)), None
        return
    replay = Replay(checkpoint, context.family, text.batch, 1, spill, context.dtype, device=context.device)
    for block in replay.walk():

        def matrix(name: str, block: Block = block) -> torch.Tensor:
            return block.matrix(name).cpu()

        part = parts[block.path]
        yield part, matrix, _statistics(block, part).on_cpu()


def _statistics(block: Block, part: FeedForwardPart) -> NeuronStatistics:
    """Run the text through the block and return the statistics of the part's inputs and neurons.

    Raises UnsupportedError for a part that does not read each token once.
    """
    prefix = len(block.path) + 1
    statistics = NeuronStatistics(block.module.get_submodule(part.paths.activation[prefix:]))
    receivers = {part.paths.first[prefix:]: statistics.add_inputs, part.paths.down[prefix:]: statistics.add_values}
    hooks = ActivationHooks(block, receivers)
    hooks.advance()
    if len(hooks.complete) != len(receivers):
        problem = f"{block.path}: its feed-forward part does not read each token once"
        raise UnsupportedError(problem, "choose another model")
    return statistics


def _experts_config(step: Step, parts: tuple[FeedForward, ...]) -> ExpertsConfig:
    settings: Moefy = step.settings
    return ExpertsConfig(settings.router, settings.experts, settings.active_experts, settings.shared or 0, parts)
