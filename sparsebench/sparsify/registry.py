"""The table of methods. A method is one file and one row here; third parties add a row by an entry point.

An entry point in the group ``sparsebench.methods`` names a ``Method``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata

from sparsebench.sparsify.contract import Score


@dataclass(frozen=True)
class Method:
    """One row: what a method is called, where its score lives (``module:function``) and what it is, in a line."""

    name: str
    score: str
    granularities: tuple[str, ...]
    summary: str
    paper: str

    def load(self) -> Score:
        """The method's score function; importing it may import torch."""
        module, function = self.score.split(":")
        found: Score = getattr(import_module(module), function)
        return found


BUILT_IN = (
    Method(
        "random",
        "sparsebench.sparsify.methods.random:score",
        ("global", "layer", "row"),
        "removes weights chosen uniformly at random: the floor that any method must beat",
        "",
    ),
    Method(
        "magnitude",
        "sparsebench.sparsify.methods.magnitude:score",
        ("global", "layer", "row"),
        "removes the weights of smallest absolute value",
        "Han et al. 2015, Learning both Weights and Connections, arXiv:1506.02626",
    ),
)


@cache
def methods() -> dict[str, Method]:
    """Every method by name: the built-in ones, then those of installed plugins."""
    table = {method.name: method for method in BUILT_IN}
    for entry in metadata.entry_points(group="sparsebench.methods"):
        method = entry.load()
        table[method.name] = method
    return table


METHODS = {method.name: method for method in BUILT_IN}
