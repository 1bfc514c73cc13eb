"""What later rooms know, in small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sparsebench.errors import SourceError
from sparsebench.manifest.checks import Checks
from sparsebench.steps.registry import combinations, kinds, sweepable

TASKS = {"piqa": ("decoder", "encoder-decoder"), "mrpc_pair": ("encoder",)}
MODEL_TYPES = {"llama": "decoder", "bert": "encoder", "t5": "encoder-decoder"}


def _parse(source: str | Mapping[str, Any]) -> object:
    if isinstance(source, str) and not source.startswith(("hf:", "path:", "wheel:", "random")):
        raise SourceError(f"source {source!r}: no such kind", "did you mean hf:?")
    return source


@pytest.fixture(scope="session")
def checks() -> Checks:
    return Checks(
        step_files=lambda: {"prune": ["file"]},
        step_names=lambda: {"prune": ["random", "magnitude", "mask"]},
        step_shape=lambda verb, name: sweepable(kinds()[verb].settings()[name]),
        read_step=combinations,
        engine_names=lambda: ["deepspeed", "sparse"],
        format_names=lambda: ["dense", "packed"],
        task_names=lambda: list(TASKS),
        parse_source=_parse,
        family_of=lambda config: MODEL_TYPES.get(config.get("model_type", "")),
        task_families=TASKS.__getitem__,
    )
