"""``skip`` as a step of a recipe: what a manifest may say of it, and the pass that finds its thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from sparsebench.errors import ModelError
from sparsebench.manifest.schema import Share, wrong
from sparsebench.steps.contract import Context, Emit, Settings, Step
from sparsebench.steps.watching import lacking


class Skip(Settings):
    """Values up to a threshold count as zero, and the weights that would meet them are not read."""

    needs: ClassVar = {"share": "the share of values that are skipped, such as 0.4"}

    share: Share | None = None
    """The share of a layer's values that count as zero, by magnitude on the calibration text."""

    def complete(self, name: str) -> dict[str, Any]:
        """As it stands."""
        if self.share == 1:
            raise wrong("a `share` of 1", "less than 1: nothing would be computed", at="share")
        return super().complete(name)


class Teal(Skip):
    """TEAL (2408.14690): what every linear layer of the blocks reads is cut at a magnitude of its own."""

    allocation: Literal["uniform", "greedy"] = "uniform"
    """The same `share` in every layer; or `share` of each block's weights, from the layers where its output suffers least,
    as published (`greedy`: it runs each block some hundred times)."""


class Cats(Skip):
    """CATS (2404.08763): what the activation function of each feed-forward part gives is cut at a magnitude of its own."""


def settings() -> dict[str, type[Settings]]:
    """Each way's settings, by its name."""
    return {"teal": Teal, "cats": Cats}


def label(step: Step) -> str:
    """``teal 40% of inputs``."""
    what = "inputs" if step.name == "teal" else "activations"
    greedy = ", greedy" if _allocation(step) == "greedy" else ""
    return f"{step.name} {100 * step.settings['share']:.4g}% of {what}{greedy}"


def shares(step: Step) -> object:
    """Steps of which this is equal are found in one pass."""
    return step.name, _allocation(step)


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Why nothing of a config.json's model can be skipped as a step asks, and the way out, as far as that tells."""
    return lacking(config, activations=step.name == "cats")


def _allocation(step: Step) -> str:
    return str(step.settings.get("allocation", "uniform"))


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Every share of one way, from one pass of the text through the model.

    Raises UnsupportedError for a mixture of experts, ModelError without text or where the parent leaves weights out already.
    """
    from sparsebench.steps.skip import thresholds

    if context.read is None:
        raise ModelError("skip needs calibration text", "name it under `calibration:`")
    thresholds.make(parent, targets, context, context.read, emit)
