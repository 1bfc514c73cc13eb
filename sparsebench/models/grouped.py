"""config.json's entry for feed-forward parts whose neurons are grouped into experts (``moefied`` computes with it)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsebench.errors import ModelError

KEY = "sparsebench_moe"
ROUTERS = ("oracle", "centroid", "representative", "learned")


COUNTED = ("coactivation", "cmoe")
"""The grouping methods that count how often neurons are active."""


def count(experts: int, active: float) -> int:
    """Return the number of experts that the share ``active`` of them is, at least one."""
    return max(1, round(experts * active))


@dataclass(frozen=True)
class FeedForward:
    """The paths of one feed-forward part's modules.

    ``first`` is the layer that reads its input, ``second`` another one beside it (empty where there is none), ``down``
    the layer that reads its neurons, and ``activation`` their activation function.
    """

    first: str
    second: str
    down: str
    activation: str

    def name(self, what: str) -> str:
        """Return the checkpoint's name of the tensor ``what`` of the part's grouping."""
        return f"{self.down}.moe.{what}"


@dataclass(frozen=True)
class ExpertsConfig:
    """How neurons are grouped and chosen: ``active`` of ``experts`` are computed for a token, the first ``shared`` always."""

    router: str
    experts: int
    active: int
    shared: int
    parts: tuple[FeedForward, ...]

    def config(self) -> dict[str, Any]:
        """Return the entry in config.json."""
        return {KEY: asdict(self)}


def experts_of(config: Mapping[str, Any]) -> ExpertsConfig | None:
    """Return how the model of a config.json groups its neurons; None where it does not.

    Raises ModelError for an entry that sparsebench would not write.
    """
    stated = config.get(KEY)
    if stated is None:
        return None
    try:
        parts = tuple(FeedForward(**one) for one in stated["parts"])
        found = ExpertsConfig(**{**stated, "parts": parts})
        numbers = (found.experts, found.active, found.shared)
        known = found.router in ROUTERS and all(type(one) is int for one in numbers) and found.shared >= 0
        known = known and 1 <= found.active <= found.experts
        known = known and all(isinstance(text, str) for part in parts for text in asdict(part).values())
    except (KeyError, TypeError):
        known = False
    if not known:
        raise ModelError(f"config.json: `{KEY}` is damaged", "make the variant again")
    return found
