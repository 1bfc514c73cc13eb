"""The settings of ``skip`` in a manifest, for each method."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.errors import Refusal
from sparsebench.manifest.schema import Share
from sparsebench.steps.contract import Settings
from sparsebench.steps.watching import hooks_refusal


class Skip(Settings):
    """Values up to a threshold count as zero, and the weights that they would be multiplied with are not read."""

    of: ClassVar[str] = "activations"
    needs: ClassVar = {"share": "the share of values that are skipped, such as 0.4"}

    share: Annotated[Share, Field(lt=1)] | None = None
    """The share of a layer's values that count as zero, by magnitude on the calibration text."""

    def reads_text(self) -> bool:
        """Return True: thresholds are quantiles of activations on the calibration text."""
        return True

    def describe(self) -> str:
        """Return a label such as ``teal 40% of inputs``."""
        return f"{self.name} {100 * (self.share or 0):.4g}% of {self.of}"

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        return hooks_refusal(config, activations=self.of == "activations")


class Teal(Skip):
    """TEAL (2408.14690): the inputs of every linear layer of the blocks have a threshold of their own."""

    of: ClassVar[str] = "inputs"
    allocation: Literal["uniform", "greedy"] = "uniform"
    """The same `share` in every layer (`uniform`), or `share` of each block's weights, taken from the layers where the
    block's output suffers least, as published (`greedy`: it runs each block some hundred times)."""

    def pass_key(self) -> Hashable:
        """Return the allocation, too: `greedy` runs each block anew."""
        return self.name, self.allocation

    def describe(self) -> str:
        """Return a label such as ``teal 40% of inputs, greedy``."""
        return super().describe() + (", greedy" if self.allocation == "greedy" else "")


class Cats(Skip):
    """CATS (2404.08763): the outputs of each feed-forward part's activation function have a threshold of their own."""


def settings() -> dict[str, type[Settings]]:
    """Return each method's settings class, by its name."""
    return {"teal": Teal, "cats": Cats}
