"""``skip`` as a step of a recipe: its settings in a manifest, and the pass that finds its thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from sparsebench.manifest.schema import Share, wrong
from sparsebench.steps.contract import Context, Emit, Settings, Step
from sparsebench.steps.watching import lacking


class Skip(Settings):
    """Values up to a threshold count as zero, and the weights that they would be multiplied with are not read."""

    needs: ClassVar = {"share": "the share of values that are skipped, such as 0.4"}

    share: Share | None = None
    """The share of a layer's values that count as zero, by magnitude on the calibration text."""

    def complete(self, name: str) -> dict[str, Any]:
        """Refuse a share of 1; every other setting is kept."""
        if self.share == 1:
            raise wrong("a `share` of 1", "less than 1: nothing would be computed", at="share")
        return super().complete(name)


class Teal(Skip):
    """TEAL (2408.14690): the inputs of every linear layer of the blocks have a threshold of their own."""

    allocation: Literal["uniform", "greedy"] = "uniform"
    """The same `share` in every layer (`uniform`), or `share` of each block's weights, taken from the layers where the
    block's output suffers least, as published (`greedy`: it runs each block some hundred times)."""


class Cats(Skip):
    """CATS (2404.08763): the outputs of each feed-forward part's activation function have a threshold of their own."""


def settings() -> dict[str, type[Settings]]:
    """Return each method's settings class, by its name."""
    return {"teal": Teal, "cats": Cats}


def label(step: Step) -> str:
    """Return a step's label, such as ``teal 40% of inputs``."""
    what = "inputs" if step.name == "teal" else "activations"
    greedy = ", greedy" if _allocation(step) == "greedy" else ""
    return f"{step.name} {100 * step.settings['share']:.4g}% of {what}{greedy}"


def shares(step: Step) -> object:
    """Return the key of a pass: the thresholds of steps with equal keys are found in one pass."""
    return step.name, _allocation(step)


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a model cannot be given the step, as far as its config.json tells, and a way out; else nothing."""
    return lacking(config, activations=step.name == "cats")


def _allocation(step: Step) -> str:
    return str(step.settings.get("allocation", "uniform"))


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every share of one method, from one pass of the text through the model.

    Raises UnsupportedError for a mixture of experts. Raises ModelError without text, or where the parent skips weights
    already.
    """
    from sparsebench.steps.skip import thresholds

    thresholds.make(parent, targets, context, emit)
