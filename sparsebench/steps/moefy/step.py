"""``moefy`` as a step of a recipe: what a manifest may say of it, and the pass that makes what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sparsebench.errors import ModelError
from sparsebench.manifest.schema import Count, Share, wrong
from sparsebench.models.architectures import neurons
from sparsebench.models.grouped import COUNTED, count
from sparsebench.models.topology import REFUSED, refusal
from sparsebench.steps.contract import Context, Emit, Settings, Step
from sparsebench.steps.watching import lacking

WAYS = ("coactivation", "kmeans", "cmoe", "random")


class Moefy(Settings):
    """Feed-forward neurons are grouped into experts of equal size; for each token some are computed."""

    experts: Count = 32
    """How many groups; the neurons of every part must be a multiple."""
    active: Share | None = None
    """The share of the experts that is computed for a token, those that all share included; at least one."""
    router: Literal["oracle", "centroid", "representative", "learned"] = "representative"
    """What chooses: `oracle` knows what the neurons give (the bound; it saves in the last matrix alone); `centroid` compares the
    input with the mean of an expert's first rows; `representative` computes one neuron of each; `learned` is a network."""
    shared: Annotated[int, Field(ge=0)] | None = None
    """Experts that are computed for every token, of the neurons that are active most often. Default: of cmoe an eighth of all,
    of others none."""
    partition: Literal["balanced", "metis"] = "balanced"
    """Of coactivation, what makes the groups: `balanced` is k-means with a linear assignment; `metis` cuts the graph of neurons
    that are active together, as published, and needs `pip install 'pymetis>=2025.2'`."""

    def complete(self, name: str) -> dict[str, Any]:
        """With the published number of shared experts filled in; there is no default for how many are active."""
        if not self.active:
            raise wrong("`active` is missing", "the share of neurons that a token is given, such as 0.5", at="active")
        if self.partition == "metis" and name != "coactivation":
            raise wrong(f"{name} with `partition: metis`", "`moefy: coactivation`, which has a graph", at="partition")
        shared = (self.experts // 8 if name == "cmoe" else 0) if self.shared is None else self.shared
        if shared and name != "cmoe":
            raise wrong(f"{name} with `shared: {shared}`", "`moefy: cmoe`, which counts what is active", at="shared")
        if shared > count(self.experts, self.active):
            fit = f"no more than the {count(self.experts, self.active)} of {self.experts} that are active"
            raise wrong(f"{shared} experts that every token is given", fit, "say `shared`", at="shared")
        return {**self.model_dump(), "shared": shared}


def settings() -> dict[str, type[Settings]]:
    """Each grouping's settings, by its name."""
    return dict.fromkeys(WAYS, Moefy)


def reads_text(step: Step) -> bool:
    """Whether the grouping or the router looks at text."""
    return step.name in COUNTED or step.settings["router"] == "learned"


def draws(step: Step) -> bool:
    """All start from a draw."""
    return True


def ends(step: Step) -> str:
    """Its router, where that looks at the weights: what trains these would change which are computed."""
    return "router" if step.settings["router"] == "oracle" else ""


def metis(step: Step) -> bool:
    """Whether METIS cuts its graph; a record may be of a time before that could be said."""
    return step.settings.get("partition") == "metis"


def libraries(step: Step) -> tuple[str, ...]:
    """What makes its groups."""
    return ("scipy", "pymetis") if metis(step) else ("scipy",)


def label(step: Step) -> str:
    """``cmoe/representative 8 of 32 experts``."""
    own = step.settings
    usual = own["experts"] // 8 if step.name == "cmoe" else 0
    shared = f", {own['shared']} shared" if own["shared"] != usual else ""
    name = f"{step.name}/metis" if metis(step) else step.name
    return f"{name}/{own['router']} {count(own['experts'], own['active'])} of {own['experts']} experts{shared}"


def shares(step: Step) -> tuple[Any, ...]:
    """What is grouped alike is grouped once."""
    return step.name, step.settings["experts"], step.settings["shared"], metis(step), reads_text(step)


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Why the neurons of a config.json's model cannot be grouped, and the way out, as far as that tells."""
    kind = str(config.get("model_type"))
    if kind in REFUSED and not reads_text(step):  # what reads text is refused by the plan itself
        return refusal(kind), "choose another model"
    return lacking(config, activations=True)


def refuses_shape(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """The same of their number, which a step before may have changed."""
    experts = step.settings["experts"]
    odd = [one for one in sorted(neurons(config)) if one % experts]
    why = f"{odd[0]} neurons make no {experts} experts of equal size" if odd else ""
    return why, why and "choose a number that divides them"


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Every share and router over one grouping.

    Raises UnsupportedError for a mixture of experts, or neurons that the experts do not divide; ModelError for a quantized
    parent, without text where text is needed, or where the parent leaves weights out already.
    """
    from sparsebench.steps.moefy import making

    text = None
    if any(map(reads_text, targets)):
        if context.read is None:
            raise ModelError(
                f"moefy: {next(iter(targets)).name} needs calibration text", "name it under `calibration:`"
            )
        text = context.read
    making.make(parent, targets, context, text, emit)
