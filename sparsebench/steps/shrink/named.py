"""A JSON file that names neurons and heads that go, or that must stay.

    {"neurons": {"0": {"go": [3, 17]}, "1": {"stay": [0, 5]}}, "heads": {"0": {"go": [2]}}}

It lists elements by kind and by block (``encoder.0`` where there are two stacks), numbered from 0. The numbers of heads
are those of the groups that share keys and values. ``cross_heads`` are cross-attention's. Heads that go from a whole
stack at once (T5) are listed under its block 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsebench import bounded
from sparsebench.errors import UserError
from sparsebench.manifest.problems import did_you_mean
from sparsebench.models.shape.axes import Axis, ModelShape
from sparsebench.sources.reference import Reference

_EXAMPLE = 'as in {"neurons": {"0": {"go": [3, 17]}, "1": {"stay": [0]}}}'


@dataclass(frozen=True)
class NamedElements:
    """The elements that a file says ``go`` and ``stay``, by the position of their axis in ``ModelShape.axes``."""

    path: Path
    go: Mapping[int, list[int]]
    stay: Mapping[int, list[int]]

    def override_scores(self, axis_index: int, scores: torch.Tensor, origin: Sequence[int]) -> torch.Tensor:
        """Return the scores (units,) with those of elements that go below, and of those that stay above, all others.
        ``origin`` has each element's number in the model that the file is about."""
        scores = scores.clone()
        for elements, score in ((self.go, -float("inf")), (self.stay, float("inf"))):
            numbers = set(elements.get(axis_index, ()))
            scores[[unit for unit, number in enumerate(origin) if number in numbers]] = score
        return scores

    def check_counts(self, shape: ModelShape, numbers: Mapping[Axis, int], uneven: bool) -> None:
        """Raise UserError, naming file and block, where the file names more elements to go or to stay than the step
        lets: in a block or, if ``uneven``, in all blocks together."""
        counted_together: dict[str, list[tuple[int, Axis]]] = {}
        for index, axis in enumerate(shape.axes):
            label = f"{self.path}: `{_kind_name(axis)}`" if uneven else _label(self.path, shape, axis)
            if axis in numbers:
                counted_together.setdefault(label, []).append((index, axis))
            elif self.go.get(index) or self.stay.get(index):
                problem = f"{label}: the file names these, but the step does not remove this kind"
                raise UserError(problem, "`of: both`, or other names")
        for label, axes in counted_together.items():
            removed = sum(axis.units - numbers[axis] for _, axis in axes)
            named = sum(len(self.go.get(index, ())) for index, _ in axes)
            if named > removed:
                problem = f"{label}: the file removes {named} elements, but the step removes only {removed}"
                raise UserError(problem, "name fewer, or keep fewer")
            kept_count = sum(numbers[axis] for _, axis in axes)
            # One stays in every block, named or not.
            named = sum(max(1, len(self.stay.get(index, ()))) for index, _ in axes)
            if named > kept_count:
                problem = f"{label}: the file keeps {named} elements, but the step keeps only {kept_count}"
                raise UserError(problem, "name fewer, or keep more")

    def kept_by_file(self, shape: ModelShape) -> dict[Axis, list[int]]:
        """Return what stays where the file alone decides: all elements but those under ``go``, or only those under
        ``stay``.

        Raises UserError for a block with both.
        """
        kept_units: dict[Axis, list[int]] = {}
        kinds = {shape.axes[index].kind for index in (*self.go, *self.stay)}
        for index, axis in enumerate(shape.axes):
            if axis.kind not in kinds:
                continue
            if self.go.get(index) and index in self.stay:
                label = _label(self.path, shape, axis)
                problem = f"{label}: both `go` and `stay`, and nothing decides on the others"
                raise UserError(problem, "name one of the two, or let a criterion choose")
            kept_units[axis] = sorted(self.stay.get(index, {*range(axis.units)} - {*self.go.get(index, ())}))
        return kept_units


def read_named(source: str, shape: ModelShape) -> NamedElements:
    """Read the file that a step names. Raises UserError, by file, kind and block, for what the model does not have."""
    path = Reference.parse(source).unchanged_file(f"a JSON file, {_EXAMPLE}", UserError)
    indices: dict[str, dict[str, int]] = {}
    for index, axis in enumerate(shape.axes):
        indices.setdefault(_kind_name(axis), {})[_block_name(shape, axis)] = index
    elements: dict[str, dict[int, list[int]]] = {"go": {}, "stay": {}}
    for kind, blocks in bounded.read_object(path, UserError, _EXAMPLE).items():
        if kind not in indices:
            hint = did_you_mean(kind, indices) or f"it has {', '.join(indices) or 'nothing that can go'}"
            raise UserError(f"{path}: `{kind}`: the model has none that can go", hint)
        for block, entry in _checked_object(blocks, f"{path}: `{kind}`").items():
            if block not in indices[kind]:
                hint = f"it has {', '.join(list(indices[kind])[:4])} …"
                raise UserError(f"{path}: `{kind}`: `{block}` is no block with {kind} of its own", hint)
            index = indices[kind][block]
            axis = shape.axes[index]
            for key, units in _listed_elements(entry, axis, _label(path, shape, axis)).items():
                elements[key][index] = units
    if not any((*elements["go"].values(), *elements["stay"].values())):
        raise UserError(f"{path}: nothing in it", f"name what goes or stays, {_EXAMPLE}")
    return NamedElements(path, **elements)


def _listed_elements(entry: Any, axis: Axis, label: str) -> dict[str, list[int]]:
    """Return the elements of one block that an entry of the file lists under `go` and `stay`."""
    lists: dict[str, list[int]] = {}
    for key, units in _checked_object(entry, label).items():
        if key not in ("go", "stay"):
            raise UserError(f"{label}: `{key}`", "`go` or `stay`")
        if not isinstance(units, list) or not all(type(unit) is int and 0 <= unit < axis.units for unit in units):
            raise UserError(f"{label}: `{key}` is no list of numbers from 0 to {axis.units - 1}", _EXAMPLE)
        lists[key] = sorted(set(units))
    go, stay = lists.get("go", []), lists.get("stay")
    if contradictory := set(go) & set(stay or ()):
        raise UserError(f"{label}: {min(contradictory)} goes and stays", "name it once")
    if len(go) == axis.units or stay == []:
        raise UserError(f"{label}: nothing would be left", "leave one at least, or remove the whole block")
    return lists


def _checked_object(value: Any, label: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{label}: not an object", _EXAMPLE)
    return value


def _kind_name(axis: Axis) -> str:
    return f"cross_{axis.kind}" if axis.cross else axis.kind


def _block_name(shape: ModelShape, axis: Axis) -> str:
    block = f"{axis.stack}.{axis.layers[0]}" if len(shape.blocks) > 1 else str(axis.layers[0])
    return f"{block}.{axis.expert}" if axis.expert else block


def _label(path: Path, shape: ModelShape, axis: Axis) -> str:
    return f"{path}: `{_kind_name(axis)}`: `{_block_name(shape, axis)}`"
