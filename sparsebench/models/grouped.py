"""How config.json says that the neurons of a model's feed-forward parts are grouped into experts (``moefied`` has the rest)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsebench.errors import ModelError

KEY = "sparsebench_moe"
ROUTERS = ("oracle", "centroid", "representative", "learned")


COUNTED = ("coactivation", "cmoe")
"""The ways of grouping that count how often neurons are active."""


def count(experts: int, active: float) -> int:
    """How many experts a share of them is: at least one."""
    return max(1, round(experts * active))


@dataclass(frozen=True)
class FeedForward:
    """One part's modules by their paths: the layer that reads its input ``first``, another beside it (``second``; empty where
    there is none), the one that reads neurons, and their ``activation`` function."""

    first: str
    second: str
    down: str
    activation: str

    def name(self, what: str) -> str:
        """The name of a tensor of its grouping in the checkpoint."""
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
        """What config.json says of it."""
        return {KEY: asdict(self)}


def experts_of(config: Mapping[str, Any]) -> ExpertsConfig | None:
    """How the model of a config.json groups its neurons; None where it does not.

    Raises ModelError for an entry that is not one of ours.
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
