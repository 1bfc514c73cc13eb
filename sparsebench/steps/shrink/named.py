"""A JSON file that names neurons and heads that go, or that must stay.

    {"neurons": {"0": {"go": [3, 17]}, "1": {"stay": [0, 5]}}, "heads": {"0": {"go": [2]}}}

It lists elements by kind and by block (``encoder.0`` where there are two stacks), numbered from 0. The numbers of heads
are those of the groups that share keys and values. ``cross_heads`` are cross-attention's. Heads that go from a whole
stack at once (T5) are listed under its block 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import UserError
from sparsebench.manifest.problems import did_you_mean
from sparsebench.models.shape.axes import Axis, ModelShape
from sparsebench.sources.reference import Reference

if TYPE_CHECKING:
    import torch

_EXAMPLE = 'as in {"neurons": {"0": {"go": [3, 17]}, "1": {"stay": [0]}}}'


@dataclass(frozen=True)
class NamedElements:
    """The elements that a file says ``go`` and ``stay``, by the position of their axis in ``ModelShape.axes``."""

    path: Path
    go: Mapping[int, list[int]] = field(default_factory=dict)
    stay: Mapping[int, list[int]] = field(default_factory=dict)

    def over(self, place: int, scores: torch.Tensor, origin: Sequence[int]) -> torch.Tensor:
        """Return the scores (units,) with those of elements that go below, and of those that stay above, all others.
        ``origin`` has each element's number in the model that the file is about."""
        scores = scores.clone()
        for named, value in ((self.go, -float("inf")), (self.stay, float("inf"))):
            wanted = set(named.get(place, ()))
            scores[[unit for unit, number in enumerate(origin) if number in wanted]] = value
        return scores

    def check(self, shape: ModelShape, numbers: Mapping[Axis, int], uneven: bool) -> None:
        """Raise UserError, naming file and block, where the file names more elements to go or to stay than the step
        lets: in a block or, if ``uneven``, in all blocks together."""
        sums: dict[str, list[int]] = {}
        for place, axis in enumerate(shape.axes):
            go, stay = len(self.go.get(place, ())), len(self.stay.get(place, ()))
            where = f"{self.path}: `{_kind(axis)}`" if uneven else _where(self.path, shape, axis)
            if axis not in numbers:
                if go + stay:
                    raise UserError(
                        f"{where}: the file names these, but the step does not remove this kind",
                        "`of: both`, or other names",
                    )
                continue
            # One stays in every block, named or not.
            own = (go, axis.units - numbers[axis], max(1, stay), numbers[axis])
            sums[where] = [one + more for one, more in zip(own, sums.get(where, (0, 0, 0, 0)), strict=True)]
        for where, (go, gone, stay, left) in sums.items():
            if go > gone:
                wrong = f"the file removes {go} elements, but the step removes only {gone}"
                raise UserError(f"{where}: {wrong}", "name fewer, or keep fewer")
            if stay > left:
                wrong = f"the file keeps {stay} elements, but the step keeps only {left}"
                raise UserError(f"{where}: {wrong}", "name fewer, or keep more")

    def exactly(self, shape: ModelShape) -> dict[Axis, list[int]]:
        """Return what stays where the file alone decides: all elements but those under ``go``, or only those under
        ``stay``.

        Raises UserError for a block with both.
        """
        kept: dict[Axis, list[int]] = {}
        kinds = {shape.axes[place].kind for place in (*self.go, *self.stay)}
        for place, axis in enumerate(shape.axes):
            if axis.kind not in kinds:
                continue
            if place in self.go and place in self.stay:
                raise UserError(
                    f"{_where(self.path, shape, axis)}: both `go` and `stay`, and nothing decides on the others",
                    "name one of the two, or let a criterion choose",
                )
            kept[axis] = sorted(self.stay.get(place, {*range(axis.units)} - {*self.go.get(place, ())}))
        return kept


def read(named: str, shape: ModelShape) -> NamedElements:
    """Read the file that a step names. Raises UserError, by file, kind and block, for what the model does not have."""
    path = Reference.parse(named).unchanged_file(f"a JSON file, {_EXAMPLE}", UserError)
    places: dict[str, dict[str, int]] = {}
    for place, axis in enumerate(shape.axes):
        places.setdefault(_kind(axis), {})[_block(shape, axis)] = place
    found = NamedElements(path, {}, {})
    for kind, blocks in bounded.read_object(path, UserError, _EXAMPLE).items():
        if kind not in places:
            hint = did_you_mean(kind, places) or f"it has {', '.join(places) or 'nothing that can go'}"
            raise UserError(f"{path}: `{kind}`: the model has none that can go", hint)
        for block, said in _object(blocks, f"{path}: `{kind}`").items():
            if block not in places[kind]:
                hint = f"it has {', '.join(list(places[kind])[:4])} …"
                raise UserError(f"{path}: `{kind}`: `{block}` is no block with {kind} of its own", hint)
            _take(found, places[kind][block], shape, said)
    if not any((*found.go.values(), *found.stay.values())):
        raise UserError(f"{path}: nothing in it", f"name what goes or stays, {_EXAMPLE}")
    return found


def _take(found: NamedElements, place: int, shape: ModelShape, said: Any) -> None:
    axis = shape.axes[place]
    where = _where(found.path, shape, axis)
    for key, units in _object(said, where).items():
        if key not in ("go", "stay"):
            raise UserError(f"{where}: `{key}`", "`go` or `stay`")
        if not isinstance(units, list) or not all(type(unit) is int and 0 <= unit < axis.units for unit in units):
            raise UserError(f"{where}: `{key}` is no list of numbers from 0 to {axis.units - 1}", _EXAMPLE)
        target: Any = found.go if key == "go" else found.stay
        target[place] = sorted(set(units))
    both = set(found.go.get(place, ())) & set(found.stay.get(place, ()))
    if both:
        raise UserError(f"{where}: {min(both)} goes and stays", "name it once")
    if len(found.go.get(place, ())) == axis.units or found.stay.get(place) == []:
        raise UserError(f"{where}: nothing would be left", "leave one at least, or remove the whole block")


def _object(value: Any, where: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: not an object", _EXAMPLE)
    return value


def _kind(axis: Axis) -> str:
    return f"cross_{axis.kind}" if axis.cross else axis.kind


def _block(shape: ModelShape, axis: Axis) -> str:
    block = f"{axis.side}.{axis.layers[0]}" if len(shape.blocks) > 1 else str(axis.layers[0])
    return f"{block}.{axis.within}" if axis.within else block


def _where(path: Path, shape: ModelShape, axis: Axis) -> str:
    return f"{path}: `{_kind(axis)}`: `{_block(shape, axis)}`"
