"""Content fingerprints: same id, same result, on any machine.

An id covers everything asked that can change what a cell measures, and nothing that cannot: no name, machine or device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from sparsebench import environment
from sparsebench.plan.stages import STAGES
from sparsebench.steps.contract import Step

READING_LIBRARIES = ("transformers", "tokenizers", "scipy")
"""The libraries that turn text into activations and sums of them (models/replay/gather.py), for steps that read text."""
DEQUANTIZING_LIBRARIES = ("transformers", "gguf")


def digest(value: Any) -> str:
    """Return a short hash of any JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def dense_id(identity: Mapping[str, Any], weights: str) -> str:
    """Return the id of a fetched checkpoint in its precision; a GGUF file's covers the libraries that dequantize it."""
    return digest([dict(identity), _libraries(DEQUANTIZING_LIBRARIES if weights == "dequantized" else ())])


def step_id(parent: str, step: Step, seed: int, calibration: Mapping[str, Any], identities: Mapping[str, Any]) -> str:
    """Return the id of what ``step`` makes of the variant ``parent``.

    ``calibration`` says what text it reads and how. ``identities`` gives what identifies the files, texts and teachers
    that its settings name. Settings at their defaults are left out, so that a new setting leaves the ids of old results
    alone.
    """
    settings = step.settings
    written = {**settings.unusual(), **identities}
    drawn = {"seed": seed} if settings.draws() else {}
    libraries = _libraries(("torch", *(READING_LIBRARIES if calibration else ()), *settings.libraries()))
    return digest([parent, step.verb, step.name, written, drawn, dict(calibration), settings.version(), libraries])


def cell_id(stage: str, variant: str, settings: Mapping[str, Any]) -> str:
    """Return the id of a cell: of the stage, the variant, the settings and the versions of code and libraries.

    The id of a ``make`` cell depends on its variant only, whose id covers the rest.
    """
    if stage == "make":
        return digest([stage, variant])
    row = STAGES[stage]
    libraries = _libraries(row.libraries(settings))
    return digest([stage, variant, dict(settings), row.module.VERSION, libraries, row.versions(settings)])


def _libraries(names: Iterable[str]) -> dict[str, str]:
    return {name: environment.major_minor(name) for name in names}
