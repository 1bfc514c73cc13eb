"""What tests of many rooms make: steps, and the folders that steps make."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Context, Step
from sparsebench.steps.registry import kinds, single


def prune_step(name: str, sparsity: float, granularity: str, pattern: str = "unstructured", **settings: Any) -> Step:
    return single("prune", name, sparsity=sparsity, granularity=granularity, pattern=pattern, **settings)


def quantize_step(name: str = "int8", group: int | None = None, rounding: str = "nearest", **settings: Any) -> Step:
    return single("quantize", name, rounding=rounding, **({"group": group} if group else {}), **settings)


def attempt(
    parent: Path, family: Any, folders: Mapping[Step, Path], text: Calibrated | None = None, **context: Any
) -> dict[Step, Any]:
    """Make steps of one verb, in as many passes as a run needs; return each one's report or error."""
    results: dict[Step, Any] = {}
    if text:
        context["calibration_tokens"] = lambda: text
    run = kinds()[next(iter(folders)).verb].load()
    passes: dict[Hashable, dict[Step, Path]] = {}
    for step, folder in folders.items():
        passes.setdefault(step.settings.pass_key(), {})[step] = folder
    for targets in passes.values():
        try:
            run(parent, targets, Context(family, **context), results.__setitem__)
        except SparsebenchError as error:  # of the whole pass
            for step in targets:
                results.setdefault(step, error)
    assert set(results) <= set(folders)
    return results


def make(
    parent: Path, family: Any, folders: Mapping[Step, Path], text: Calibrated | None = None, **context: Any
) -> dict[Step, Any]:
    """As ``attempt``. Raises the first error where all failed."""
    results = attempt(parent, family, folders, text, **context)
    if results and all(isinstance(result, SparsebenchError) for result in results.values()):
        raise next(iter(results.values()))
    return results
