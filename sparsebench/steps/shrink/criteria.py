"""The table of criteria: the settings class of each name under ``shrink``."""

from __future__ import annotations

from sparsebench.steps.contract import Settings
from sparsebench.steps.shrink.choosing import REAP
from sparsebench.steps.shrink.gate_settings import Gates
from sparsebench.steps.shrink.settings import DEPTH, WIDTH, Depth, Flap, Listed, RandomCut, Reap, Taylor, Width


def settings() -> dict[str, type[Settings]]:
    """Return each criterion's class of settings, by the criterion's name."""
    return {
        **dict.fromkeys(DEPTH, Depth),
        **dict.fromkeys(WIDTH, Width),
        "flap": Flap,
        "taylor": Taylor,
        REAP: Reap,
        "random": RandomCut,
        "list": Listed,
        "gates": Gates,
    }
