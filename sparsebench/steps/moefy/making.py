"""Group the neurons of every feed-forward part, and write the folders that hold the grouping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.models.files.building import temporary
from sparsebench.models.files.checkpoint import Checkpoint, safetensors_dtype
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.models.modules.moefied import ExpertRouter
from sparsebench.models.modules.skipping import COUNTED, ExpertsConfig, FeedForward, count, skips
from sparsebench.models.replay.blockwise import Replay
from sparsebench.models.replay.skeleton import fill_skeleton, survey
from sparsebench.models.shape.topology import Part, prunable_parts
from sparsebench.steps.contract import Activity, Context, Emit, Step
from sparsebench.steps.counting import counted
from sparsebench.steps.moefy import routers
from sparsebench.steps.moefy.grouping import grouped
from sparsebench.steps.moefy.settings import Moefy
from sparsebench.steps.moefy.use import activity
from sparsebench.steps.share import read_share
from sparsebench.steps.watching import ActivationHooks, activation, refuse_experts

if TYPE_CHECKING:
    from torch import nn

    from sparsebench.models.replay.blockwise import Block
    from sparsebench.models.replay.gather import PrunableLayer
    from sparsebench.steps.calibration import Calibrated


@dataclass(frozen=True)
class FeedForwardPart:
    """One feed-forward part: its modules, its matrices' names by kind, and its block."""

    paths: FeedForward
    matrices: Mapping[str, str]
    side: str
    layer: int

    def weights(self, matrix: Callable[[str], torch.Tensor], checkpoint: Checkpoint) -> routers.FeedForwardWeights:
        """Return the part's weights, float32; ``matrix`` gives a matrix as (out, in), ``checkpoint`` the biases."""

        def bias(kind: str) -> torch.Tensor | None:
            name = self.matrices[kind].removesuffix("weight") + "bias"
            return checkpoint.load(name).float() if name in checkpoint.tensors else None

        norms = matrix(self.matrices["down"]).float().norm(dim=0)
        if "gate_up" in self.matrices:
            gate, up = matrix(self.matrices["gate_up"]).float().chunk(2)
            joint = bias("gate_up")
            gate_bias, up_bias = (None, None) if joint is None else joint.chunk(2)
            return routers.FeedForwardWeights(gate, up, gate_bias, up_bias, norms)
        gated = "gate" in self.matrices
        return routers.FeedForwardWeights(
            gate=matrix(self.matrices["gate"]).float() if gated else None,
            up=matrix(self.matrices["up"]).float(),
            gate_bias=bias("gate") if gated else None,
            bias=bias("up"),
            norms=norms,
        )


@dataclass
class RouterTables:
    """The parts' assignments and the routers' tables, to be written beside the weights; the parts' activity on text."""

    assignments: dict[FeedForward, torch.Tensor] = field(default_factory=dict)
    tables: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """For each router, its tensors by their names in the checkpoint."""
    activity: dict[Step, list[Activity]] = field(default_factory=dict)
    """For each step, a row for each part; empty where no text is read."""


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every variant, by active share and router, from one grouping.

    Raises UnsupportedError for a mixture of experts, for a number of neurons that is no multiple of the experts, and
    for blocks without a known feed-forward part. Raises ModelError for a quantized parent, for one that leaves weights
    out already, and without text where text is needed.
    """
    started = time.perf_counter()
    checkpoint = float_checkpoint(parent, "start from the model that it was made from")
    if skips(checkpoint.config):
        raise ModelError(f"{parent}: it leaves weights out already", "start from the model that it was made from")
    first = next(iter(targets))
    experts, shared, partition = first.settings.experts, first.settings.shared, first.settings.partition
    parts = prunable_parts(checkpoint, context.family)
    refuse_experts(parent, parts)
    places = _places(checkpoint, context.family, parts, experts)
    wanted = {step.settings.router for step in targets}
    text = context.text(f"moefy: {first.name}") if first.settings.reads_text() else None
    made = RouterTables(tables={router: {} for router in wanted})
    with temporary(next(iter(targets.values())).parent / ".activations") as spill:
        for done, (place, matrix, seen) in enumerate(_visited(checkpoint, places, context, text, spill), start=1):
            weights = place.weights(matrix, checkpoint)
            gram = seen.gram(first.name) if seen and first.name in COUNTED else weights.gram()
            found = grouped(first.name, gram, experts, shared, context.seed, partition)
            made.assignments[place.paths] = found.assignment
            for router in wanted:
                tables = routers.tables(router, weights, found, experts, seen, context.seed)
                dtype = matrix(place.matrices["down"]).dtype
                made.tables[router] |= {place.paths.name(name): table.to(dtype) for name, table in tables.items()}
                for step in [one for one in targets if one.settings.router == router] if seen else []:
                    assert seen
                    how = _how(step, (place.paths,))
                    chooser = ExpertRouter(how, found.assignment, tables or {"norms": weights.norms}, seen.function)
                    row = activity(chooser, seen, place.side, place.layer, place.paths.down)
                    made.activity.setdefault(step, []).append(row)
            if context.progress:
                context.progress(done, len(places))
    seconds = time.perf_counter() - started
    for step, folder in targets.items():
        try:
            told = {"family": context.family, "moefy": step.name, **step.settings.record(), "seed": context.seed}
            how = _how(step, tuple(made.assignments))
            _write(parent, folder, how, made, {**told, **(text.told() if text else {})})
            share = read_share(Checkpoint(folder), context.family)
            note = (
                f"{how.active} of {how.experts} experts are computed for a token; {share:.1%} of the blocks' weights are read "
                "for it, the router's included; stock transformers loads the folder and computes with all experts"
            )
            shown = tuple(made.activity.get(step, ()))
            if shares := [row.inside for row in shown if row.inside is not None]:
                cut = "METIS" if partition == "metis" else "balanced assignment"
                by = f", by {cut}" if step.name == "coactivation" else ""
                note += f"; {sum(shares) / len(shares):.1%} of co-activation lies inside experts{by}"
            result = counted(folder, context.family, seconds, len(targets), note, text.told() if text else None)
            emit(step, replace(result, already_zero=result.zeros, read_share=share, activity=shown))
        except SparsebenchError as error:
            emit(step, error)


def _places(checkpoint: Checkpoint, family: Any, parts: Mapping[str, Part], experts: int) -> dict[str, FeedForwardPart]:
    """Return every block's feed-forward part by the block's path. Raises UnsupportedError for an unfit one."""
    skeleton = survey(checkpoint.config, family)
    fill_skeleton(skeleton, checkpoint, family)
    return {
        block.path: _place(block.path, block.side, block.index, block.module, block.prunable, parts, experts)
        for stack in skeleton.stacks
        for block in stack.blocks
    }


def _place(
    path: str,
    side: str,
    layer: int,
    module: nn.Module,
    readers: Mapping[str, PrunableLayer],
    parts: Mapping[str, Part],
    experts: int,
) -> FeedForwardPart:
    kinds = {parts[name].kind: name for name in readers if parts[name].kind in ("gate", "up", "gate_up", "down")}
    if "down" not in kinds or not kinds.keys() & {"up", "gate_up"}:
        raise UnsupportedError(f"{path}: no feed-forward part is known in it", "choose another model")
    function_path = activation(module, path)
    function = module.get_submodule(function_path)
    if float(function(torch.zeros(1))):
        raise UnsupportedError(
            f"{path}: its activation {type(function).__name__} is not 0 at 0, so neurons cannot be left out",
            "choose another model",
        )
    neurons = readers[kinds["down"]].width
    if neurons % experts:
        raise UnsupportedError(
            f"{kinds['down']}: {neurons} neurons make no {experts} experts of equal size",
            "choose a number that divides them",
        )
    known = {id(one): name for name, one in module.named_modules()}
    at = {kind: f"{path}.{known[id(readers[name].module)]}" for kind, name in kinds.items()}
    first = at.get("gate_up") or at.get("gate") or at["up"]
    paths = FeedForward(first, at["up"] if "gate" in at else "", at["down"], f"{path}.{function_path}")
    return FeedForwardPart(paths, kinds, side, layer)


def _visited(
    checkpoint: Checkpoint,
    places: Mapping[str, FeedForwardPart],
    context: Context,
    text: Calibrated | None,
    spill: Path,
) -> Iterator[tuple[FeedForwardPart, Callable[[str], torch.Tensor], routers.NeuronStatistics | None]]:
    """Yield every part, a function that gives its matrices as (out, in), and its statistics on the text, if any."""
    if text is None:
        turned = prunable_parts(checkpoint, context.family)
        for place in places.values():
            yield place, lambda name: turned[name].views[0].shaped(checkpoint.load(name)), None
        return
    replay = Replay(checkpoint, context.family, text.batch, 1, spill, context.dtype, device=context.device)
    for block in replay.walk():
        place = places[block.path]
        yield place, partial(_on_cpu, block), _seen(block, place).on_cpu()


def _on_cpu(block: Block, name: str) -> torch.Tensor:
    return block.matrix(name).cpu()


def _seen(block: Block, place: FeedForwardPart) -> routers.NeuronStatistics:
    """Run the text through the block and return the statistics of the part's inputs and neurons.

    Raises UnsupportedError for a part that does not read each token once.
    """
    inside = len(block.path) + 1
    seen = routers.NeuronStatistics(block.module.get_submodule(place.paths.activation[inside:]))
    takes = {place.paths.first[inside:]: seen.read, place.paths.down[inside:]: seen.gave}
    watch = ActivationHooks(block, takes)
    watch.advance()
    if len(watch.whole) != len(takes):
        raise UnsupportedError(
            f"{block.path}: its feed-forward part does not read each token once", "choose another model"
        )
    return seen


def _how(step: Step, parts: tuple[FeedForward, ...]) -> ExpertsConfig:
    """Return the entry of config.json for some parts."""
    own: Moefy = step.settings
    return ExpertsConfig(own.router, own.experts, count(own.experts, own.active or 0), own.shared or 0, parts)


def _write(parent: Path, folder: Path, how: ExpertsConfig, made: RouterTables, told: dict[str, Any]) -> None:
    """Write the parent's weights, the assignments, and the router's tables into ``folder``."""
    stored = Checkpoint(parent)
    added = {part.name("assignment"): given.to(torch.int32) for part, given in made.assignments.items()}
    added |= made.tables[how.router]
    infos = [(info.name, info.dtype, info.shape) for info in stored.tensors.values()]
    infos += [(name, safetensors_dtype(tensor.dtype, name), tuple(tensor.shape)) for name, tensor in added.items()]
    with CheckpointWriter(folder, lay_out(infos), parent, how.config()) as writer:
        for name in stored.tensors:
            writer.copy(name, stored)
        for name, tensor in added.items():
            writer.write(name, tensor)
        writer.close(told)
