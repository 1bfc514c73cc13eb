"""How many neurons and heads stay, the same in every block, and which: those with the highest scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.errors import UnsupportedError
from sparsebench.models.architectures import stated
from sparsebench.models.axes import Axis, Kind, Shape, sizes

if TYPE_CHECKING:
    import torch

Of = Literal["neurons", "heads", "both"]


@dataclass(frozen=True)
class Cutting:
    """What one step asks for: the share of the blocks' ``parameters`` that stays, or the share to ``keep`` of each axis."""

    of: Of
    parameters: float | None = None
    keep: float | None = None
    multiple_of: int = 1


def kinds_of(of: Of) -> tuple[Kind, ...]:
    """Which axes are meant."""
    return ("heads", "neurons") if of == "both" else (of,)


def numbers(shape: Shape, wanted: Cutting) -> dict[Axis, int]:
    """How many elements of every axis stay: the same share of all, heads in whole groups, at least one.

    Where both may go, the neurons make up for what whole heads leave over. Raises UnsupportedError where so many parameters
    cannot go that way, or an axis cannot be cut at all.
    """
    axes = {kind: shape.of(kind) for kind in kinds_of(wanted.of)}
    tensors, total = shape.checkpoint.tensors, shape.block_parameters
    worth = {kind: sum(axis.units * axis.cost(tensors) for axis in axes[kind]) for kind in axes}
    target = None if wanted.parameters is None else (1 - wanted.parameters) * total
    share = wanted.keep if target is None else 1 - target / sum(worth.values())
    assert share is not None
    if target is not None and share <= 0:
        most = sum(worth.values()) / total
        raise UnsupportedError(
            f"parameters: {wanted.parameters:g}: {' and '.join(axes)} are {most:.0%} of the blocks' parameters",
            f"a share above {1 - most:.2f}, or `of: both`",
        )
    found: dict[Axis, int] = {}
    if "heads" in axes:
        groups = _groups(shape, share)
        found |= dict.fromkeys(axes["heads"], groups)
        gone = sum((axis.units - groups) * axis.cost(tensors) for axis in axes["heads"])
        if target is not None and "neurons" in axes:
            share = min(1.0, 1 - (target - gone) / worth["neurons"])
            if share <= 0:
                raise UnsupportedError(f"parameters: {wanted.parameters:g}: not even without any neuron", "keep more")
    for axis in axes.get("neurons", ()):
        step = wanted.multiple_of
        # At least one step, and no more than there are.
        count = max(1, round(share * axis.units / step)) * step
        found[axis] = min(count, axis.units)
    return found


def _groups(shape: Shape, share: float) -> int:
    """The number of groups of heads that is nearest to a share of them, of those that config.json can say."""
    how, config = shape.how.heads, shape.checkpoint.config
    assert how is not None
    heads, groups, _ = sizes(config, shape.how)
    hidden = int(stated(config, "hidden_size")) if how.whole else 0
    fitting = [count for count in range(1, groups + 1) if hidden % (count * heads // groups) == 0]
    return min(fitting, key=lambda count: (abs(count - share * groups), -count))


def best(scores: torch.Tensor, count: int) -> list[int]:
    """The ``count`` elements with the highest scores (units,), in order; of equal ones the first stay."""
    import torch

    order = torch.argsort(scores.double(), descending=True, stable=True)
    return sorted(int(unit) for unit in order[:count])


def config_of(shape: Shape, kept: Mapping[Axis, Sequence[int]]) -> dict[str, Any]:
    """What config.json says of a model with these elements."""
    how, config = shape.how, shape.checkpoint.config
    changed: dict[str, Any] = {}
    for axis, stay in kept.items():
        if axis.kind == "neurons":
            changed[how.key(how.neurons, axis.side)] = len(stay)
        elif how.heads is not None:
            heads, groups, size = sizes(config, how)
            changed[how.heads.count] = len(stay) * heads // groups
            changed[how.heads.size] = size
            if how.heads.groups:
                changed[how.heads.groups] = len(stay)
    return changed


def told(shape: Shape, kept: Mapping[Axis, Sequence[int]]) -> str:
    """What stays, in words: ``of each block 1229 of 1536 neurons and 6 of 9 heads stay, 20.0% of the blocks' parameters go``."""
    words = []
    for kind in ("neurons", "heads"):
        pairs = {(len(stay), axis.units) for axis, stay in kept.items() if axis.kind == kind}
        if kind == "heads" and pairs and shape.how.heads is not None:
            heads, groups, _ = sizes(shape.checkpoint.config, shape.how)
            pairs = {(some * heads // groups, units * heads // groups) for some, units in pairs}
        words += [f"{some} of {units} {kind}" for some, units in sorted(pairs)]
    tensors = shape.checkpoint.tensors
    gone = sum((axis.units - len(stay)) * axis.cost(tensors) for axis, stay in kept.items())
    return f"{' and '.join(words)} of each block stay; {gone / max(1, shape.block_parameters):.1%} of the blocks' parameters went"
