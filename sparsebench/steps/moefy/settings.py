"""The settings of ``moefy`` in a manifest."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from sparsebench.errors import Refusal
from sparsebench.manifest.schema import Count, Share, wrong
from sparsebench.models.shape.architectures import feed_forward_widths
from sparsebench.models.shape.topology import NOT_REPLAYED, replay_refusal
from sparsebench.steps.contract import Settings
from sparsebench.steps.watching import hooks_refusal

WAYS = ("coactivation", "kmeans", "cmoe", "random")
COUNTED = ("coactivation", "cmoe")
"""The grouping methods that count how often neurons are active."""


class Moefy(Settings):
    """Group feed-forward neurons into experts of equal size; for each token only some experts are computed."""

    reads_floats: ClassVar[bool] = True
    needs: ClassVar = {"active": "the share of the experts that is computed for a token, such as 0.5"}

    experts: Count = 32
    """How many experts; the number of neurons of every feed-forward part must be a multiple of it."""
    active: Annotated[Share, Field(gt=0)] | None = None
    """The share of the experts that is computed for a token, shared ones included; at least one expert."""
    router: Literal["oracle", "centroid", "representative", "learned"] = "representative"
    """How experts are chosen. `oracle`: by the values of all neurons, an upper bound that saves work in the last matrix
    alone. `centroid`: by comparing the input with the mean of an expert's rows in the first matrix. `representative`:
    by the value of one neuron of each expert. `learned`: by a small network trained on calibration text."""
    shared: Annotated[int, Field(ge=0)] | None = None
    """How many experts are computed for every token; they hold the neurons that are active most often. Default: an
    eighth of the experts for `cmoe`; the others have none."""
    partition: Literal["balanced", "metis"] = "balanced"
    """How `coactivation` makes its groups. `balanced`: k-means with a linear assignment. `metis`: cutting the graph of
    neurons that are active together, as published; needs `pip install 'pymetis>=2025.2'`."""

    def completed(self) -> Self:
        """Fill in the published number of shared experts.

        Raises PydanticCustomError where `active` is missing, or settings exclude each other.
        """
        completed = super().completed()
        if self.partition == "metis" and self.name != "coactivation":
            problem = f"{self.name} with `partition: metis`"
            raise wrong(problem, "`moefy: coactivation`, which has a graph", at="partition")
        shared = self._default_shared if self.shared is None else self.shared
        if shared and self.name != "cmoe":
            problem = f"{self.name} with `shared: {shared}`"
            raise wrong(problem, "`moefy: cmoe`, which counts what is active", at="shared")
        if shared > self.active_experts:
            problem = f"`shared: {shared}` is more than the {self.active_experts} active experts"
            raise wrong(problem, "a smaller `shared`", at="shared")
        return completed.model_copy(update={"shared": shared})

    @property
    def active_experts(self) -> int:
        """How many experts are computed for each token."""
        return max(1, round(self.experts * (self.active or 0)))

    @property
    def _default_shared(self) -> int:
        return self.experts // 8 if self.name == "cmoe" else 0

    def reads_text(self) -> bool:
        return self.name in COUNTED or self.router == "learned"

    def draws(self) -> bool:
        """Return True: groups and routers begin at random."""
        return True

    def pass_key(self) -> Hashable:
        return self.name, self.experts, self.shared, self.partition, self.reads_text()

    def libraries(self) -> tuple[str, ...]:
        return ("scipy", "pymetis") if self.partition == "metis" else ("scipy",)

    def describe(self) -> str:
        """Return a label such as ``cmoe/representative 8 of 32 experts``."""
        name = f"{self.name}/metis" if self.partition == "metis" else self.name
        shared = f", {self.shared} shared" if self.shared != self._default_shared else ""
        return f"{name}/{self.router} {self.active_experts} of {self.experts} experts{shared}"

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        kind = str(config.get("model_type"))
        if kind in NOT_REPLAYED and not self.reads_text():  # if the step reads text, the plan itself refuses these
            return Refusal(replay_refusal(kind), "choose another model")
        return hooks_refusal(config, activations=True)

    def refuses_shape(self, config: Mapping[str, Any]) -> Refusal | None:
        odd = [size for size in sorted(feed_forward_widths(config)) if size % self.experts]
        if not odd:
            return None
        return Refusal(
            f"{odd[0]} neurons make no {self.experts} experts of equal size", "choose a number that divides them"
        )

    def closing_key(self) -> str:
        """Return ``router`` for an oracle: later training of the weights would change its choices."""
        return "router" if self.router == "oracle" else ""


def settings() -> dict[str, type[Settings]]:
    """Return the settings class of each way of grouping, by name."""
    return dict.fromkeys(WAYS, Moefy)
