"""``moefy`` as a step of a recipe: its settings in a manifest, and the pass that groups the neurons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sparsebench.manifest.schema import Count, Share, wrong
from sparsebench.models.modules.skipping import COUNTED, count
from sparsebench.models.shape.architectures import neurons
from sparsebench.models.shape.topology import REFUSED, refusal
from sparsebench.steps.contract import Context, Emit, Settings, Step
from sparsebench.steps.watching import lacking

WAYS = ("coactivation", "kmeans", "cmoe", "random")


class Moefy(Settings):
    """Group feed-forward neurons into experts of equal size; for each token only some experts are computed."""

    experts: Count = 32
    """How many experts; the number of neurons of every feed-forward part must be a multiple of it."""
    active: Share | None = None
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

    def complete(self, name: str) -> dict[str, Any]:
        """Return the settings with the published number of shared experts filled in.

        Raises PydanticCustomError where `active` is missing, or settings exclude each other.
        """
        if not self.active:
            what = "`active` is missing" if self.active is None else "active is 0"
            raise wrong(what, "the share of neurons that a token is given, above 0, such as 0.5", at="active")
        if self.partition == "metis" and name != "coactivation":
            raise wrong(f"{name} with `partition: metis`", "`moefy: coactivation`, which has a graph", at="partition")
        shared = (self.experts // 8 if name == "cmoe" else 0) if self.shared is None else self.shared
        if shared and name != "cmoe":
            raise wrong(f"{name} with `shared: {shared}`", "`moefy: cmoe`, which counts what is active", at="shared")
        if shared > count(self.experts, self.active):
            active = count(self.experts, self.active)
            message = f"`shared: {shared}` is more than the {active} active experts"
            raise wrong(message, "a smaller `shared`", at="shared")
        return {**self.model_dump(), "shared": shared}


def settings() -> dict[str, type[Settings]]:
    """Return the settings class of each way of grouping, by name."""
    return dict.fromkeys(WAYS, Moefy)


def reads_text(step: Step) -> bool:
    """Whether the grouping or the router needs calibration text."""
    return step.name in COUNTED or step.settings["router"] == "learned"


def ends(step: Step) -> str:
    """Return ``router`` for an oracle, else nothing: later training of the weights would change its choices."""
    return "router" if step.settings["router"] == "oracle" else ""


def metis(step: Step) -> bool:
    """Whether METIS makes the groups; an old record may lack this setting."""
    return step.settings.get("partition") == "metis"


def libraries(step: Step) -> tuple[str, ...]:
    """Return the libraries that make the groups."""
    return ("scipy", "pymetis") if metis(step) else ("scipy",)


def label(step: Step) -> str:
    """Return a label such as ``cmoe/representative 8 of 32 experts``."""
    own = step.settings
    usual = own["experts"] // 8 if step.name == "cmoe" else 0
    shared = f", {own['shared']} shared" if own["shared"] != usual else ""
    name = f"{step.name}/metis" if metis(step) else step.name
    return f"{name}/{own['router']} {count(own['experts'], own['active'])} of {own['experts']} experts{shared}"


def shares(step: Step) -> tuple[Any, ...]:
    """Return the key by which steps share a pass: those with the same grouping are grouped once."""
    return step.name, step.settings["experts"], step.settings["shared"], metis(step), reads_text(step)


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return why the neurons of a config.json's model cannot be grouped, and the way out; else empty strings."""
    kind = str(config.get("model_type"))
    if kind in REFUSED and not reads_text(step):  # if the step reads text, the plan itself refuses these
        return refusal(kind), "choose another model"
    return lacking(config, activations=True)


def refuses_shape(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return why the number of neurons, which an earlier step may have changed, is unfit, and the way out."""
    experts = step.settings["experts"]
    odd = [one for one in sorted(neurons(config)) if one % experts]
    why = f"{odd[0]} neurons make no {experts} experts of equal size" if odd else ""
    return why, why and "choose a number that divides them"


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every variant, by active share and router, from one grouping.

    Raises UnsupportedError for a mixture of experts, for a number of neurons that is no multiple of the experts, and
    for blocks without a known feed-forward part. Raises ModelError for a quantized parent, for one that leaves weights
    out already, and without text where text is needed.
    """
    from sparsebench.steps.moefy import making

    making.make(parent, targets, context, any(map(reads_text, targets)), emit)
