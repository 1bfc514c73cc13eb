"""How many neurons, heads and experts stay, and which ones: those with the highest scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import lcm
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import TensorInfo
from sparsebench.models.files.families import PER_LAYER
from sparsebench.models.shape.architectures import config_value
from sparsebench.models.shape.axes import Axis, AxisKind, HeadSizes, ModelShape, head_sizes

if TYPE_CHECKING:
    import torch

Of = Literal["neurons", "heads", "both", "experts"]
REAP = "reap"
"""The criterion of whole experts: how strongly text is routed to them."""
DOCUMENTS, LENGTH = 128, 512
"""The default number of labelled documents to read, and the number of tokens to which each is cut."""
ALIGNED = 8
"""An expert's number of neurons is a multiple of this: transformers runs fused experts with torch's `grouped_mm`, whose
rows must be multiples of 16 bytes, for two-byte weights too."""


def kinds_of(of: Of) -> tuple[AxisKind, ...]:
    """Return the kinds of axes that ``of`` means."""
    return ("heads", "neurons") if of == "both" else (of,)


def removable_blocks(counts: Mapping[str, int], settings: Any, pinned: int) -> dict[str, list[int]]:
    """Return the blocks that may go, by stack, of the ``counts`` blocks that each stack has; the first ``pinned`` stay.

    Raises UnsupportedError where ``settings`` remove more than that or a whole stack, or name one where there is one.
    """
    if settings.stacks != "both" and len(counts) == 1:
        raise UnsupportedError(f"stacks: {settings.stacks}: the model has one stack of blocks", "leave `stacks` out")
    removable: dict[str, list[int]] = {}
    for stack, count in counts.items():
        if settings.stacks not in ("both", stack):
            continue
        removable[stack] = list(range(pinned, count))
        most = min(len(removable[stack]), count - 1)
        if settings.blocks > most:
            pinned_note = f", of which the first {pinned} always stay" if pinned else ""
            problem = f"blocks: {settings.blocks}: the {stack} has {count} blocks{pinned_note}"
            raise UnsupportedError(problem, f"at most {most}")
    return removable


def remaining_counts(shape: ModelShape, settings: Any) -> dict[Axis, int]:
    """Return how many elements of every axis stay by the settings of a width or of gates: the same share of all, heads
    in whole groups, at least one.

    Where both may go, the neurons make up for what whole heads leave over. Raises UnsupportedError where the axes hold
    too few parameters for the share, where they have fewer elements than asked for, or where one cannot
    be cut at all.
    """
    axes = {kind: shape.axes_of(kind) for kind in kinds_of(settings.of)}
    if any(getattr(settings, kind, None) for kind in axes):
        return _counts_by_number(shape, axes, settings)
    heads, neurons, experts = (axes.get(kind, []) for kind in ("heads", "neurons", "experts"))
    tensors = shape.checkpoint.tensors

    def parameters(counts: Mapping[Axis, int]) -> int:
        return sum(count * axis.cost(tensors) for axis, count in counts.items())

    removable = parameters({axis: axis.units for kind in axes for axis in axes[kind]})
    target = None if settings.parameters is None else (1 - settings.parameters) * shape.block_parameters
    share = settings.keep if target is None else 1 - target / removable
    assert share is not None
    if target is not None and share <= 0:
        largest_share = removable / shape.block_parameters
        raise UnsupportedError(
            f"parameters: {settings.parameters:g}: {' and '.join(axes)} are {largest_share:.0%} of the blocks' parameters",
            f"a share above {1 - largest_share:.2f}"
            + (", or `of: both`" if settings.of in ("neurons", "heads") else ""),
        )
    remaining = {axis: _nearest(_head_counts(shape, axis, settings.uneven), share * axis.units) for axis in heads}
    if target is not None and heads and neurons:
        removed = parameters({axis: axis.units - count for axis, count in remaining.items()})
        share = min(1.0, 1 - (target - removed) / parameters({axis: axis.units for axis in neurons}))
        if share <= 0:
            problem = f"parameters: {settings.parameters:g}: removing every neuron would not reach this share"
            raise UnsupportedError(problem, "a larger share")
    step = lcm(settings.multiple_of, alignment(neurons))
    for axis in neurons:
        width = axis.units // axis.width_factor
        # At least one step, and no more than there are.
        count = max(1, round(share * width / step)) * step
        remaining[axis] = min(count, width) * axis.width_factor
    for axis in experts:
        remaining[axis] = _nearest(expert_counts(shape, axis), share * axis.units)
    return remaining


def _counts_by_number(shape: ModelShape, axes: Mapping[AxisKind, Sequence[Axis]], settings: Any) -> dict[Axis, int]:
    """Return how many elements of the axes, by kind, stay by the settings that are numbers."""
    neurons = axes.get("neurons", ())
    widths = sorted({axis.units // axis.width_factor for axis in neurons})
    if shape.architecture.mixture and len(widths) > 1:
        problem = f"neurons: {settings.neurons}: its experts and blocks are {' and '.join(map(str, widths))} wide"
        raise UnsupportedError(problem, "`keep: 0.5`")
    step = alignment(neurons)
    return {
        axis: _checked_count(shape, axis, getattr(settings, kind) or 0, settings.uneven, step)
        for kind in axes
        for axis in axes[kind]
    }


def alignment(axes: Iterable[Axis]) -> int:
    """Return what the number of remaining neurons is a multiple of: ``ALIGNED`` if any axis is an expert's, else 1."""
    return ALIGNED if any(axis.expert for axis in axes) else 1


def expert_counts(shape: ModelShape, axis: Axis) -> list[int]:
    """Return the numbers of experts that can stay: as many in each of the router's groups, and enough for one token."""
    groups = expert_groups(shape)
    mixture = shape.architecture.mixture
    assert mixture is not None
    experts_per_token = int(config_value(shape.checkpoint.config, mixture.chosen))
    key = mixture.groups_per_token
    groups_per_token = int(config_value(shape.checkpoint.config, key)) if key else 1
    fewest = experts_per_token
    if mixture.groups:
        # Routers with groups compare them by the sum of each group's two best experts.
        fewest = max(2, -(-experts_per_token // groups_per_token))
    return list(range(groups * fewest, axis.units + 1, groups))


def expert_groups(shape: ModelShape) -> int:
    """Return the number of groups into which routers divide their experts; 1 without groups."""
    mixture = shape.architecture.mixture
    return int(config_value(shape.checkpoint.config, mixture.groups) or 1) if mixture and mixture.groups else 1


def _checked_count(shape: ModelShape, axis: Axis, count: int, uneven: bool, step: int) -> int:
    """Return how many elements of an axis are ``count`` neurons, experts or heads. Raises UnsupportedError where so
    many cannot stay: neurons in multiples of ``step``, heads in whole groups."""
    heads_per_unit = 1
    if axis.kind == "neurons":
        most = axis.units // axis.width_factor // step * step
        possible = [*range(step, most + 1, step)]
        hint = f"at most {most}" if step == 1 else f"multiples of {step} up to {most}"
        if not possible:
            hint = f"neurons of an expert go in steps of {step}: remove whole experts instead"
    elif axis.kind == "experts":
        possible = expert_counts(shape, axis)
        hint = _expert_range(shape, possible)
    else:
        sizes = _head_sizes(shape)
        heads_per_unit = sizes.heads // sizes.groups
        possible = [groups * heads_per_unit for groups in _head_counts(shape, axis, uneven)]
        hint = f"{'one' if len(possible) > 1 else 'that is'} of {', '.join(map(str, possible))}"
    if count not in possible:
        capacity = f"{'an expert' if axis.expert else 'a block'} has {axis.units // axis.width_factor * heads_per_unit}"
        raise UnsupportedError(f"{axis.kind}: {count}: not possible: {capacity}", hint)
    return count // heads_per_unit * axis.width_factor


def _expert_range(shape: ModelShape, counts: Sequence[int]) -> str:
    groups = expert_groups(shape)
    in_groups = f", the same number in each of the router's {groups} groups" if groups > 1 else ""
    return f"from {counts[0]} to {counts[-1]}{in_groups}"


def _nearest(counts: Iterable[int], target: float) -> int:
    """Return the count nearest to ``target``, the larger of two that are equally near."""
    return min(sorted(counts, reverse=True), key=lambda count: abs(count - target))


def _head_counts(shape: ModelShape, axis: Axis, uneven: bool) -> list[int]:
    """Return the numbers of groups of heads that config.json can state."""
    heads = shape.architecture.heads
    assert heads is not None
    sizes = _head_sizes(shape)
    divisible = heads.hidden_divisible and not uneven
    hidden = int(config_value(shape.checkpoint.config, "hidden_size")) if divisible else 0
    return [count for count in range(1, axis.units + 1) if hidden % (count * sizes.heads // sizes.groups) == 0]


def counts_after_cut(
    shape: ModelShape, numbers: Mapping[Axis, int], cut: int, cuts: int, uneven: bool
) -> dict[Axis, int]:
    """Return how many elements stay after ``cut`` of ``cuts`` equal cuts; numbers of heads fit config.json."""
    remaining: dict[Axis, int] = {}
    for axis, final_count in numbers.items():
        step = axis.width_factor * (alignment(numbers) if axis.kind == "neurons" else 1)
        # The number before the cut need not be a multiple of the step, but the number that stays must be.
        aligned_units = -(-axis.units // step) * step
        count = min(axis.units, aligned_units - round((aligned_units - final_count) * cut / cuts / step) * step)
        if axis.kind == "heads":
            possible = [groups for groups in _head_counts(shape, axis, uneven) if groups >= final_count]
            count = _nearest(possible, count)
        remaining[axis] = count
    return remaining


def best_across_blocks(
    numbers: Mapping[Axis, int], scores: Mapping[Axis, torch.Tensor], tensors: Mapping[str, TensorInfo], joint: bool
) -> dict[Axis, list[int]]:
    """Return the elements with the highest scores across all blocks: ``numbers`` in total, at least one per axis.

    Neurons and heads are ranked apart or, if ``joint``, together within one budget of parameters (FLAP).
    """
    kinds = {axis.kind for axis in numbers}
    kept = {axis: best_units(scores[axis], 1) for axis in numbers}
    for ranked in [kinds] if joint else [{kind} for kind in kinds]:
        costs = {axis: axis.cost(tensors) for axis in numbers if axis.kind in ranked}
        budget = sum((numbers[axis] - 1) * cost for axis, cost in costs.items())
        candidates = [
            (float(score), axis, unit)
            for axis in costs
            for unit, score in enumerate(scores[axis])
            if unit not in kept[axis]
        ]
        for _, axis, unit in sorted(candidates, key=itemgetter(0), reverse=True):
            # Round to the nearest whole element.
            if budget < costs[axis] / 2:
                break
            kept[axis].append(unit)
            budget -= costs[axis]
    return {axis: sorted(units) for axis, units in kept.items()}


def best_units(scores: torch.Tensor, count: int, groups: int = 1) -> list[int]:
    """Return the ``count`` elements with the highest scores (units,), in order, as many of each group; ties go to the
    elements that come first."""
    import torch

    order = torch.argsort(scores.double().reshape(groups, -1), dim=1, descending=True, stable=True)
    size = len(scores) // groups
    return sorted(group * size + int(unit) for group in range(groups) for unit in order[group, : count // groups])


def changed_config(shape: ModelShape, kept: Mapping[Axis, Sequence[int]]) -> dict[str, Any]:
    """Return the keys of config.json that change for a model with these elements: one number for all blocks where stock
    transformers can express that, otherwise each block's own in ``per_layer_config``.

    Raises UnsupportedError for widths that differ between the blocks of a mixture of experts or of an encoder-decoder,
    whose two stacks ``per_layer_config`` cannot tell apart, and for experts or neurons of experts that cannot be run.
    """
    config = shape.checkpoint.config
    changed: dict[str, Any] = {}
    by_key: dict[str, dict[Axis, int]] = {}
    for axis in shape.axes:
        by_key.setdefault(shape.key(axis), {})[axis] = len(kept[axis]) if axis in kept else axis.units
    blocks: dict[int, dict[str, int]] = {}
    for key, remaining in by_key.items():
        kind = next(iter(remaining)).kind
        dense = _head_sizes(shape).groups if kind == "heads" else config_value(config, key)
        numbers = {count / axis.width_factor for axis, count in remaining.items()}
        if numbers == {dense}:
            continue
        if len(numbers) == 1 and kind == "neurons" and max(numbers) % alignment(remaining):
            raise UnsupportedError(
                f"{config.get('model_type')}: {max(numbers):g} neurons in every expert, which torch's `grouped_mm` refuses",
                f"keep a multiple of {ALIGNED}",
            )
        if kind == "experts":
            _check_experts(shape, kept)
        if len(numbers) == 1 and (kind != "heads" or _same_for_all(shape, remaining)):
            changed |= _config_keys(shape, kind, key, int(numbers.pop()))
            continue
        if shape.architecture.mixture:
            raise _uneven(
                config, f"block and expert must keep the same number of {kind}: config.json has one number for all"
            )
        if len(shape.blocks) > 1:
            raise _uneven(
                config, f"block must keep the same number of {kind}: `{PER_LAYER}` cannot describe two stacks"
            )
        for axis, count in remaining.items():
            if count != dense:
                blocks.setdefault(axis.layers[0], {}).update(_config_keys(shape, kind, key, count))
    if blocks or PER_LAYER in config:
        changed[PER_LAYER] = {str(block): blocks[block] for block in sorted(blocks)} or None
    return changed


def _uneven(config: Mapping[str, Any], rule: str) -> UnsupportedError:
    return UnsupportedError(f"{config.get('model_type')}: every {rule}", "let the same number go everywhere")


def _same_for_all(shape: ModelShape, remaining: Mapping[Axis, int]) -> bool:
    """Whether one number in config.json can state for all blocks how many groups of heads stay."""
    axis, count = next(iter(remaining.items()))
    heads = shape.architecture.heads
    return bool(heads and heads.size) and count in _head_counts(shape, axis, uneven=False)


def _check_experts(shape: ModelShape, kept: Mapping[Axis, Sequence[int]]) -> None:
    """Raise UnsupportedError where a router could not choose among the experts that stay."""
    groups = expert_groups(shape)
    for axis, units in kept.items():
        if axis.kind != "experts":
            continue
        possible = expert_counts(shape, axis)
        counts_of_groups = {sum(unit * groups // axis.units == group for unit in units) for group in range(groups)}
        if len(units) not in possible or len(counts_of_groups) > 1:
            problem = f"block {axis.layers[0]}: {len(units)} of {axis.units} experts cannot stay"
            raise UnsupportedError(f"{problem}: a token still takes as many as before", _expert_range(shape, possible))


def _head_sizes(shape: ModelShape) -> HeadSizes:
    return head_sizes(shape.checkpoint.config, shape.architecture)


def _config_keys(shape: ModelShape, kind: AxisKind, key: str, count: int) -> dict[str, int]:
    """Return the keys of config.json that state ``count`` elements."""
    if kind != "heads":
        return {key: count}
    heads = shape.architecture.heads
    assert heads is not None
    sizes = _head_sizes(shape)
    keys = {heads.count: count * sizes.heads // sizes.groups, heads.size or "head_dim": sizes.size}
    return keys | ({heads.groups: count} if heads.groups else {})


def cut_note(shape: ModelShape, remaining: Mapping[Axis, int]) -> str:
    """Return a note, such as ``1229 of 1536 neurons and 6 of 9 heads of each block stay; 20.0% of the blocks'
    parameters went``."""
    phrases = []
    for kind in ("neurons", "heads", "experts"):
        sizes = _head_sizes(shape) if kind == "heads" and shape.architecture.heads else HeadSizes(1, 1, 1)
        counts = [
            (count * sizes.heads // sizes.groups, axis.units * sizes.heads // sizes.groups)
            for axis, count in remaining.items()
            if axis.kind == kind
        ]
        if len({count for count, _ in counts}) > 3:
            phrases.append(f"{min(counts)[0]} to {max(counts)[0]} of {max(units for _, units in counts)} {kind}")
        else:
            phrases += [f"{count} of {units} {kind}" for count, units in sorted(set(counts))]
    tensors = shape.checkpoint.tensors
    removed_parameters = sum((axis.units - count) * axis.cost(tensors) for axis, count in remaining.items())
    share = removed_parameters / max(1, shape.block_parameters)
    return f"{' and '.join(phrases)} of each block stay; {share:.1%} of the blocks' parameters went"
