"""The thresholds of skipping, from quantiles of magnitudes on calibration text.

    TEAL    t = the magnitude with P(|x| ≤ t) = share, of each linear layer's input x; y = W (x where |x| > t, else 0)
    CATS    t = the magnitude with P(|a| ≤ t) = share, of each feed-forward part's a = σ(W_gate x), without a gate σ(W_up x)

The text goes through the model as it is. Behind layers that skip, a layer's inputs will differ a little from those
measured. Padding does not count.

TEAL's greedy allocation (2408.14690, algorithm 1) spreads a block's target share of skipped weights over its layers:

    until Σ share_i size_i / Σ size_i reaches the target: raise the share of one layer i by SHARE_STEP · Σ size / size_i,
    the layer for which ‖Y - Ŷ‖ is then least; Y is the block's output as it is, Ŷ with all layers masked

Each raise is the same number of weights, whatever the layer. A layer whose share would exceed `MAX_SHARE` is not raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.building import activations_beside
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.files.writing import copy_checkpoint
from sparsebench.models.modules.hooks import removing_hooks
from sparsebench.models.modules.skipping import SkipThresholds, masked, skips_weights
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.shape.topology import Part, checked_parts
from sparsebench.steps.contract import Activity, Context, Emit, Step
from sparsebench.steps.counting import step_report
from sparsebench.steps.outputs import failing_alone
from sparsebench.steps.skip.magnitudes import NEAR, Magnitudes, SkipSite
from sparsebench.steps.watching import ActivationHooks, activation_path, layer_paths, refuse_experts

FEW_ZEROS = 0.01
"""The share of zero weights up to which the note does not mention them."""
SHARE_STEP, MAX_SHARE = 0.02, 0.95
"""The greedy allocation's step, a share of a block's weights, and the largest share of a layer."""


@dataclass
class SkipStatistics:
    """The statistics of one pass of the text.

    ``sites`` are the sites where values can be skipped. ``weights`` is the number of weights in all matrices of the
    blocks, ``nonzeros`` how many of these are not zero. ``unskipped_layers`` counts the layers that stay as they are,
    because they do not read one row for each token. ``block_shares`` are to be allocated to each block's layers, and
    ``site_shares`` has, for each of them, the share of each site.
    """

    block_shares: tuple[float, ...] = ()
    site_shares: dict[float, dict[str, float]] = field(default_factory=dict)
    sites: list[SkipSite] = field(default_factory=list)
    weights: int = 0
    nonzeros: int = 0
    unskipped_layers: int = 0

    def visit(self, block: Block, parts: Mapping[str, Part], outputs: bool) -> None:
        """Run the text through one block as it is, and add its statistics."""
        matrices = layer_paths(block)
        activation = activation_path(block.module, f"{block.stack} block {block.index}") if outputs else ""
        magnitudes = {path: Magnitudes() for path in ([activation] if outputs else matrices.values())}
        hooks = ActivationHooks(block, {path: counts.add for path, counts in magnitudes.items()}, outputs)
        hooks.advance()
        sizes = {name: block.matrix(name).numel() for name in matrices}
        nonzeros = {name: int(block.matrix(name).count_nonzero()) for name in matrices}
        weights_of = {matrices[name]: (size, nonzeros[name]) for name, size in sizes.items()}
        if outputs:
            kinds = {name: parts[name].kind for name in sizes}
            weights_of[activation] = _behind_activation(kinds, sizes), _behind_activation(kinds, nonzeros)
        self.weights += sum(sizes.values())
        self.nonzeros += sum(nonzeros.values())
        sites = [
            SkipSite(f"{block.path}.{path}", *weights_of[path], magnitudes[path], block.stack, block.index)
            for path in hooks.complete
        ]
        allocations = allocate_shares(block, sites, self.block_shares) if self.block_shares else {}
        for share, site_shares in allocations.items():
            self.site_shares.setdefault(share, {}).update(zip((site.path for site in sites), site_shares, strict=True))
        self.sites += sites
        self.unskipped_layers += len(magnitudes) - len(sites)

    def threshold(self, site: SkipSite, share: float) -> tuple[float, float]:
        """Return a site's threshold for a share of its block, and the share of the site's values up to it."""
        return site.magnitudes.threshold(self.site_shares.get(share, {}).get(site.path, share))


def _behind_activation(kinds: Mapping[str, str], sizes: Mapping[str, int]) -> int:
    """Count the weights multiplied with a block's activations: those of down, and of up beside a gate."""
    by_kind = {kind: sizes[name] for name, kind in kinds.items()}
    up = by_kind.get("up", 0) if "gate" in by_kind else by_kind.get("gate_up", 0) // 2
    return by_kind.get("down", 0) + up


def make_skipping(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every share of one method, from one pass of the text: the parent's files, with thresholds in config.json.

    Raises UnsupportedError for a mixture of experts. Raises ModelError without text, or where the parent skips weights
    already.
    """
    started, checkpoint = time.perf_counter(), open_checkpoint(parent)
    if skips_weights(checkpoint.config):
        raise ModelError(f"{parent}: it skips weights already", "start from the model that it was made from")
    parts = checked_parts(checkpoint, context.family)
    refuse_experts(parent, parts)
    text = context.text("skip")
    first, first_folder = next(iter(targets.items()))
    outputs = first.name == "cats"
    greedy = getattr(first.settings, "allocation", "uniform") == "greedy"
    statistics = SkipStatistics(tuple(step.settings.share for step in targets) if greedy else ())
    with activations_beside(first_folder) as spill:
        # The greedy allocation runs each block again and again, so its groups have one sample.
        group = 1 if greedy else None
        replay = Replay(
            checkpoint, context.family, text.batch, 1, spill, context.dtype, group=group, device=context.device
        )
        replay.run(lambda block: statistics.visit(block, parts, outputs), context.progress)
    seconds = time.perf_counter() - started
    for step, folder in targets.items():
        with failing_alone(step, emit):
            thresholds, activity, notes = _choose_thresholds(statistics, step.settings.share, outputs)
            settings = {"family": context.family, "skip": step.name, **step.settings.record()}
            copy_checkpoint(parent, folder, thresholds.config(), {**settings, **notes, **text.provenance()})
            report = step_report(
                folder, context.family, seconds=seconds, sweep_size=len(targets), provenance=text.provenance()
            )
            emit(
                step,
                replace(
                    report, already_zero=report.zeros, read_share=notes["read"], activity=activity, note=notes["note"]
                ),
            )


def _choose_thresholds(
    statistics: SkipStatistics, share: float, outputs: bool
) -> tuple[SkipThresholds, tuple[Activity, ...], dict[str, Any]]:
    """Return the thresholds for a share, their effect at each site, and notes for the folder's description."""
    if not statistics.sites:
        raise UnsupportedError("skip: no layer reads one row for each token", "leave the step out for this model")
    magnitudes = {site.path: statistics.threshold(site, share) for site in statistics.sites}
    unread = sum(site.weights * magnitudes[site.path][1] for site in statistics.sites)
    multiplied = statistics.nonzeros - sum(site.nonzeros * magnitudes[site.path][1] for site in statistics.sites)
    skipped_shares = [skipped for _, skipped in magnitudes.values()]
    activity = tuple(
        Activity(site.stack, site.layer, site.path, site.magnitudes.near_zero, *magnitudes[site.path])
        for site in statistics.sites
    )
    near_zero_shares = [row.near_zero for row in activity]
    source = "activation functions give" if outputs else "layers read"
    unskipped = statistics.unskipped_layers
    sentences = [
        f"on the calibration text {min(skipped_shares):.1%} to {max(skipped_shares):.1%} of what {len(skipped_shares)} "
        f"{source} counts as zero, so that {1 - unread / statistics.weights:.1%} of the blocks' weights are read for a token",
        _zeros_note(statistics, statistics.weights - unread, multiplied),
        f"as it is, {min(near_zero_shares):.1%} to {max(near_zero_shares):.1%} is within {NEAR:.0%} of the root mean square",
        f"{unskipped} layers read no rows of tokens, and skip nothing" if unskipped else "",
        "stock transformers loads the folder and skips nothing",
    ]
    layers = {
        row.module: {"threshold": row.threshold, "share": row.skipped, "near_zero": row.near_zero} for row in activity
    }
    magnitude_of_site = {path: limit for path, (limit, _) in magnitudes.items()}
    thresholds = SkipThresholds({}, magnitude_of_site) if outputs else SkipThresholds(magnitude_of_site, {})
    note = "; ".join(filter(None, sentences))
    shares = {"read": 1 - unread / statistics.weights, "multiplied": multiplied / statistics.weights}
    return thresholds, activity, {"note": note, **shares, "layers": layers}


def _zeros_note(statistics: SkipStatistics, read: float, multiplied: float) -> str:
    """Describe what a token reads where weights are zero too; empty where at most the share FEW_ZEROS is.

    A bitmask format takes two bytes for each weight that is not zero, and one bit for each weight.
    """
    if statistics.nonzeros > (1 - FEW_ZEROS) * statistics.weights:
        return ""
    size = (2 * multiplied + read / 8) / (2 * statistics.weights)
    return (
        f"{multiplied / statistics.weights:.1%} of them are read and not zero, "
        f"which as bitmasks takes {size:.1%} of the bytes of all in 16 bits"
    )


def allocate_shares(block: Block, sites: Sequence[SkipSite], targets: Sequence[float]) -> dict[float, list[float]]:
    """Return, for each target, the share of each site in ``sites``; costs are measured on the first group of samples.

    A target beyond what the layers may skip gets the largest shares that were reached.
    """
    total_weights = sum(site.weights for site in sites)
    growths = [SHARE_STEP * total_weights / site.weights for site in sites]
    shares, allocations = [0.0] * len(sites), {}
    cost = _block_cost(block, sites)

    def skipped() -> float:
        return sum(share * site.weights for share, site in zip(shares, sites, strict=True))

    for target in sorted(targets):
        while skipped() < (target - 1e-9) * total_weights:
            candidates = [
                [*shares[:number], shares[number] + growth, *shares[number + 1 :]]
                for number, growth in enumerate(growths)
                if shares[number] + growth <= MAX_SHARE
            ]
            if not candidates:
                break
            shares = min(candidates, key=cost)
        allocations[target] = list(shares)
    return allocations


def _block_cost(block: Block, sites: Sequence[SkipSite]) -> Callable[[Sequence[float]], float]:
    """Return the distance of a block's output from its output as it is, as a function of the shares of its sites."""
    rows = block.samples[0]
    weights, mask = block.weights(), block.mask(rows)
    modules = [block.module.get_submodule(site.path.removeprefix(f"{block.path}.")) for site in sites]

    def output() -> torch.Tensor:
        with torch.no_grad():
            return block.forward(0, rows, weights)[mask].float()

    def mask_input(threshold: float, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return masked(args[0], threshold), *args[1:]

    def cost(shares: Sequence[float]) -> float:
        thresholds = [site.magnitudes.threshold(share)[0] for site, share in zip(sites, shares, strict=True)]
        hooked = zip(modules, thresholds, strict=True)
        with removing_hooks(
            module.register_forward_pre_hook(partial(mask_input, threshold)) for module, threshold in hooked
        ):
            return float((output() - unmasked_output).norm())

    unmasked_output = output()
    return cost
