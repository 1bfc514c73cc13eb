"""How many neurons, heads and experts stay, and which ones: those with the highest scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.families import PER_LAYER
from sparsebench.models.shape.architectures import stated
from sparsebench.models.shape.axes import Axis, AxisKind, ModelShape, sizes

if TYPE_CHECKING:
    import torch

    from sparsebench.models.files.checkpoint import TensorInfo

Of = Literal["neurons", "heads", "both", "experts"]
REAP = "reap"
"""The criterion of whole experts: how strongly text is routed to them."""
DOCUMENTS, LENGTH = 128, 512
"""The default number of labelled documents to read, and the number of tokens to which each is cut."""
ALIGNED = 8
"""An expert's number of neurons is a multiple of this: transformers runs fused experts with torch's `grouped_mm`, whose
rows must be multiples of 16 bytes, for two-byte weights too."""


@dataclass(frozen=True)
class Cutting:
    """What one step asks to keep: a share of the blocks' ``parameters``, a share of each axis (``keep``), or a number:
    of ``neurons`` per block or expert, ``heads`` per attention, ``experts`` per block."""

    of: Of
    parameters: float | None = None
    keep: float | None = None
    neurons: int | None = None
    heads: int | None = None
    experts: int | None = None
    multiple_of: int = 1
    uneven: bool = False


def kinds_of(of: Of) -> tuple[AxisKind, ...]:
    """Return the kinds of axes that ``of`` means."""
    return ("heads", "neurons") if of == "both" else (of,)


def numbers(shape: ModelShape, wanted: Cutting) -> dict[Axis, int]:
    """Return how many elements of every axis stay: the same share of all, heads in whole groups, at least one.

    Where both may go, the neurons make up for what whole heads leave over. Raises UnsupportedError where the axes hold
    too few parameters for the share, where they have fewer elements than asked for, or where one cannot
    be cut at all.
    """
    axes = {kind: shape.of(kind) for kind in kinds_of(wanted.of)}
    if wanted.neurons or wanted.heads or wanted.experts:
        counts = {"neurons": wanted.neurons, "heads": wanted.heads, "experts": wanted.experts}
        widths = sorted({axis.units // axis.times for axis in axes.get("neurons", ())})
        if shape.how.mixture and len(widths) > 1:
            raise UnsupportedError(
                f"neurons: {wanted.neurons}: its experts and blocks are {' and '.join(map(str, widths))} wide",
                "`keep: 0.5`",
            )
        step = alignment(axes.get("neurons", ()))
        return {
            axis: _counted(shape, axis, counts[kind] or 0, wanted.uneven, step) for kind in axes for axis in axes[kind]
        }
    left, tensors = wanted.parameters, shape.checkpoint.tensors
    cost, total = {axis: axis.cost(tensors) for axis in shape.axes}, shape.block_parameters
    worth = {kind: sum(axis.units * cost[axis] for axis in axes[kind]) for kind in axes}
    target = None if left is None else (1 - left) * total
    share = wanted.keep if target is None else 1 - target / sum(worth.values())
    assert share is not None
    if target is not None and share <= 0:
        most = sum(worth.values()) / total
        raise UnsupportedError(
            f"parameters: {left:g}: {' and '.join(axes)} are {most:.0%} of the blocks' parameters",
            f"a share above {1 - most:.2f}, or `of: both`",
        )
    found: dict[Axis, int] = {}
    if "heads" in axes:
        fitting = {axis: _fitting(shape, axis, wanted.uneven) for axis in axes["heads"]}
        found |= {axis: _nearest(counts, share * axis.units) for axis, counts in fitting.items()}
        gone = sum((axis.units - found[axis]) * cost[axis] for axis in axes["heads"])
        if target is not None and "neurons" in axes:
            share = min(1.0, 1 - (target - gone) / worth["neurons"])
            if share <= 0:
                raise UnsupportedError(
                    f"parameters: {left:g}: removing every neuron would not reach this share", "a larger share"
                )
    for axis in axes.get("neurons", ()):
        step, width = lcm(wanted.multiple_of, alignment(axes["neurons"])), axis.units // axis.times
        # At least one step, and no more than there are.
        count = max(1, round(share * width / step)) * step
        found[axis] = min(count, width) * axis.times
    for axis in axes.get("experts", ()):
        found[axis] = _nearest(fitting_experts(shape, axis), share * axis.units)
    return found


def alignment(axes: Iterable[Axis]) -> int:
    """Return what the number of remaining neurons is a multiple of: ``ALIGNED`` if any axis is an expert's, else 1."""
    return ALIGNED if any(axis.within for axis in axes) else 1


def fitting_experts(shape: ModelShape, axis: Axis) -> list[int]:
    """Return the numbers of experts that can stay: as many in each of the router's groups, and enough for one token."""
    groups, mixture = expert_groups(shape), shape.how.mixture
    assert mixture is not None
    chosen = int(stated(shape.checkpoint.config, mixture.chosen))
    taken = int(stated(shape.checkpoint.config, mixture.taken)) if mixture.taken else 1
    # Routers with groups compare them by the sum of each group's two best experts.
    least = max(2, -(-chosen // taken)) if mixture.groups else chosen
    return list(range(groups * least, axis.units + 1, groups))


def expert_groups(shape: ModelShape) -> int:
    """Return the number of groups into which routers divide their experts; 1 without groups."""
    mixture = shape.how.mixture
    return int(stated(shape.checkpoint.config, mixture.groups) or 1) if mixture and mixture.groups else 1


def _counted(shape: ModelShape, axis: Axis, count: int, uneven: bool, step: int) -> int:
    """Return how many elements of an axis are ``count`` neurons, experts or heads. Raises UnsupportedError where so
    many cannot stay: neurons in multiples of ``step``, heads in whole groups."""
    each = 1
    if axis.kind == "neurons":
        most = axis.units // axis.times // step * step
        fitting = [*range(step, most + 1, step)]
        said = f"at most {most}" if step == 1 else f"multiples of {step} up to {most}"
        said = said if fitting else f"neurons of an expert go in steps of {step}: remove whole experts instead"
    elif axis.kind == "experts":
        fitting = fitting_experts(shape, axis)
        said = _said(shape, fitting)
    else:
        heads, groups, _ = _heads_of(shape)
        each = heads // groups
        fitting = [one * each for one in _fitting(shape, axis, uneven)]
        said = f"{'one' if len(fitting) > 1 else 'that is'} of {', '.join(map(str, fitting))}"
    if count not in fitting:
        where = f"{'an expert' if axis.within else 'a block'} has {axis.units // axis.times * each}"
        raise UnsupportedError(f"{axis.kind}: {count}: not possible: {where}", said)
    return count // each * axis.times


def _said(shape: ModelShape, fitting: Sequence[int]) -> str:
    """Return how many experts can stay, in words."""
    groups = expert_groups(shape)
    alike = f", the same number in each of the router's {groups} groups" if groups > 1 else ""
    return f"from {fitting[0]} to {fitting[-1]}{alike}"


def _nearest(counts: Iterable[int], wanted: float) -> int:
    """Return the count nearest to ``wanted``, the larger of two that are equally near."""
    return min(counts, key=lambda count: (abs(count - wanted), -count))


def _fitting(shape: ModelShape, axis: Axis, uneven: bool) -> list[int]:
    """Return the numbers of groups of heads that config.json can state."""
    how = shape.how.heads
    assert how is not None
    heads, groups, _ = _heads_of(shape)
    hidden = int(stated(shape.checkpoint.config, "hidden_size")) if how.whole and not uneven else 0
    return [count for count in range(1, axis.units + 1) if hidden % (count * heads // groups) == 0]


def part_way(
    shape: ModelShape, numbers: Mapping[Axis, int], cut: int, cuts: int, uneven: bool = False
) -> dict[Axis, int]:
    """Return how many elements stay after ``cut`` of ``cuts`` equal cuts; numbers of heads fit config.json."""
    found: dict[Axis, int] = {}
    for axis, last in numbers.items():
        step = axis.times * (alignment(numbers) if axis.kind == "neurons" else 1)
        # The number before the cut need not be a multiple of the step, but the number that stays must be.
        full = -(-axis.units // step) * step
        count = min(axis.units, full - round((full - last) * cut / cuts / step) * step)
        if axis.kind == "heads":
            fitting = [one for one in _fitting(shape, axis, uneven) if one >= last]
            count = _nearest(fitting, count)
        found[axis] = count
    return found


def spread(
    numbers: Mapping[Axis, int], scores: Mapping[Axis, torch.Tensor], tensors: Mapping[str, TensorInfo], joint: bool
) -> dict[Axis, list[int]]:
    """Return the elements with the highest scores across all blocks: ``numbers`` in total, at least one per axis.

    Neurons and heads are ranked apart or, if ``joint``, together within one budget of parameters (FLAP).
    """
    kinds = {axis.kind for axis in numbers}
    kept: dict[Axis, list[int]] = {}
    for ranked in [kinds] if joint else [{kind} for kind in sorted(kinds)]:
        axes = [axis for axis in numbers if axis.kind in ranked]
        budget = sum(numbers[axis] * axis.cost(tensors) for axis in axes)
        firsts = {axis: best(scores[axis], 1)[0] for axis in axes}
        order = [(unit != firsts[axis], -float(score), place, unit, axis)
                 for place, axis in enumerate(axes) for unit, score in enumerate(scores[axis])]  # fmt: skip
        stay: dict[Axis, list[int]] = {axis: [] for axis in axes}
        for _, _, _, unit, axis in sorted(order, key=lambda one: one[:4]):
            cost = axis.cost(tensors)
            # Round to the nearest whole element.
            if stay[axis] and budget < cost / 2:
                break
            stay[axis].append(unit)
            budget -= cost
        kept |= {axis: sorted(own) for axis, own in stay.items()}
    return {axis: kept[axis] for axis in numbers}


def best(scores: torch.Tensor, count: int, groups: int = 1) -> list[int]:
    """Return the ``count`` elements with the highest scores (units,), in order, as many of each group; ties go to the
    elements that come first."""
    import torch

    order = torch.argsort(scores.double().reshape(groups, -1), dim=1, descending=True, stable=True)
    size = len(scores) // groups
    return sorted(group * size + int(unit) for group in range(groups) for unit in order[group, : count // groups])


def config_of(shape: ModelShape, kept: Mapping[Axis, Sequence[int]]) -> dict[str, Any]:
    """Return the keys of config.json that change for a model with these elements: one number for all blocks where stock
    transformers can express that, otherwise each block's own in ``per_layer_config``.

    Raises UnsupportedError for widths that differ between the blocks of a mixture of experts or of an encoder-decoder,
    whose two stacks ``per_layer_config`` cannot tell apart, and for experts or neurons of experts that cannot be run.
    """
    how, config = shape.how, shape.checkpoint.config
    changed: dict[str, Any] = {}
    by_key: dict[str, dict[Axis, int]] = {}
    for axis in shape.axes:
        by_key.setdefault(shape.key(axis), {})[axis] = len(kept[axis]) if axis in kept else axis.units
    blocks: dict[int, dict[str, int]] = {}
    for key, left in by_key.items():
        kind = next(iter(left)).kind
        whole = _heads_of(shape)[1] if kind == "heads" else stated(config, key)
        numbers = {count / axis.times for axis, count in left.items()}
        if numbers == {whole}:
            continue
        if len(numbers) == 1 and kind == "neurons" and max(numbers) % alignment(left):
            raise UnsupportedError(
                f"{config.get('model_type')}: {max(numbers):g} neurons in every expert, which torch's `grouped_mm` refuses",
                f"keep a multiple of {ALIGNED}",
            )
        if kind == "experts":
            _check_experts(shape, kept)
        if len(numbers) == 1 and (kind != "heads" or _said_once(shape, left)):
            changed |= _words(shape, kind, key, int(numbers.pop()))
            continue
        if how.mixture:
            raise UnsupportedError(
                f"{config.get('model_type')}: every block and expert must keep the same number of {kind}: "
                "config.json has one number for all",
                "let the same number go everywhere",
            )
        if len(shape.blocks) > 1:
            raise UnsupportedError(
                f"{config.get('model_type')}: every block must keep the same number of {kind}: `{PER_LAYER}` "
                "cannot describe two stacks",
                "let the same number go everywhere",
            )
        for axis, count in left.items():
            if count != whole:
                blocks.setdefault(axis.layers[0], {}).update(_words(shape, kind, key, count))
    if blocks or PER_LAYER in config:
        changed[PER_LAYER] = {str(block): blocks[block] for block in sorted(blocks)} or None
    return changed


def _said_once(shape: ModelShape, left: Mapping[Axis, int]) -> bool:
    """Whether one number in config.json can state for all blocks how many groups of heads stay."""
    axis, count = next(iter(left.items()))
    return bool(shape.how.heads and shape.how.heads.size) and count in _fitting(shape, axis, uneven=False)


def _check_experts(shape: ModelShape, kept: Mapping[Axis, Sequence[int]]) -> None:
    """Raise UnsupportedError where a router could not choose among the experts that stay."""
    groups = expert_groups(shape)
    for axis, stay in kept.items():
        if axis.kind != "experts":
            continue
        fitting = fitting_experts(shape, axis)
        each = {sum(unit * groups // axis.units == group for unit in stay) for group in range(groups)}
        if len(stay) not in fitting or len(each) > 1:
            raise UnsupportedError(
                f"block {axis.layers[0]}: {len(stay)} of {axis.units} experts cannot stay: a token still takes as many as before",
                _said(shape, fitting),
            )


def _heads_of(shape: ModelShape) -> tuple[int, int, int]:
    """Return the number of heads and of groups, and a head's size, as config.json states them for all blocks."""
    return sizes(shape.checkpoint.config, shape.how)


def _words(shape: ModelShape, kind: AxisKind, key: str, count: int) -> dict[str, int]:
    """Return the keys of config.json that state ``count`` elements."""
    if kind != "heads":
        return {key: count}
    how = shape.how.heads
    assert how is not None
    heads, groups, size = _heads_of(shape)
    said = {how.count: count * heads // groups, how.size or "head_dim": size}
    return said | ({how.groups: count} if how.groups else {})


def told(shape: ModelShape, left: Mapping[Axis, int]) -> str:
    """Return a note, such as ``1229 of 1536 neurons and 6 of 9 heads of each block stay; 20.0% of the blocks'
    parameters went``."""
    words = []
    for kind in ("neurons", "heads", "experts"):
        heads, groups, _ = _heads_of(shape) if kind == "heads" and shape.how.heads else (1, 1, 1)
        own = [
            (count * heads // groups, axis.units * heads // groups) for axis, count in left.items() if axis.kind == kind
        ]
        if len({some for some, _ in own}) > 3:
            words.append(f"{min(own)[0]} to {max(own)[0]} of {max(units for _, units in own)} {kind}")
        else:
            words += [f"{some} of {units} {kind}" for some, units in sorted(set(own))]
    tensors = shape.checkpoint.tensors
    gone = sum((axis.units - count) * axis.cost(tensors) for axis, count in left.items())
    return f"{' and '.join(words)} of each block stay; {gone / max(1, shape.block_parameters):.1%} of the blocks' parameters went"
