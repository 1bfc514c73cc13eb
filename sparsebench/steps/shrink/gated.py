"""The settings of ``shrink: gates``: how much stays, and those of `recover: distill`, as the whole model is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sparsebench.manifest.schema import Count, Share, wrong
from sparsebench.steps.contract import Step
from sparsebench.steps.recover.step import Distill, words

GATES = "gates"
_SHARES = ("parameters", "operations", "keep")
_PART = Annotated[Share, Field(gt=0, lt=1)]


class Gates(Distill):
    """Learns a gate for each neuron and head while the whole model is trained, and removes those whose gates close."""

    parameters: _PART | None = None
    """The share of the blocks' parameters that stays, between 0 and 1. Alternatives are `operations` and `keep`."""
    operations: _PART | None = None
    """The share of the blocks' floating-point operations per token that stays, attention included. They are counted for
    a sequence of 512 tokens, or of the model's longest input where that is shorter."""
    keep: _PART | None = None
    """The share of the neurons, or of the heads, that stays."""
    of: Literal["neurons", "heads", "both"] = "both"
    """What is removed. Heads go in whole groups that share keys and values. With `both`, the same share of neurons and
    heads goes, and neurons make up for what whole groups leave over."""
    uneven: bool = False
    """Whether one Lagrangian covers all blocks, so that some lose more than others; otherwise each block has its own.
    Such a model is written in transformers' `per_layer_config`, which only sparsebench loads. Not for
    encoder-decoders."""
    multiple_of: Count = 1
    """The number of neurons that stay is rounded to a multiple of this."""
    gate_rate: float = 0.2
    """The learning rate (Adam) of the gates' log α."""
    penalty: float = 10.0
    """The initial λ2; λ1 begins at 0."""
    multiplier_rate: float = 0.1
    """The shares of Δ and of Δ² by which the multipliers λ1 and λ2 grow in each step."""
    end: Share = 0.25
    """The share of the steps over which the target sparsity grows linearly from 0 to its final value."""
    settle: Share = 0.5
    """The share of the steps after which gates are open or closed for good; the rest trains what is left."""

    def complete(self, name: str) -> dict[str, Any]:
        """Check the settings; return them with the one of `parameters`, `operations` and `keep` that is given."""
        given = [key for key in _SHARES if getattr(self, key) is not None]
        if len(given) != 1:
            what = " beside ".join(f"`{key}`" for key in given) or "no share of what stays"
            raise wrong(what, "one of them, such as `parameters: 0.8`", at="parameters")
        if self.multiple_of > 1 and (self.uneven or self.of == "heads"):
            beside = "uneven" if self.uneven else "of: heads"
            raise wrong(f"`multiple_of` beside `{beside}`", "one of them", at="multiple_of")
        for key in ("gate_rate", "penalty", "multiplier_rate"):
            if not 0 < getattr(self, key) < 1e6:
                raise wrong(f"{key} is {getattr(self, key):g}", "a number above 0, such as 0.1", at=key)
        if not self.end <= self.settle:
            raise wrong(f"end is {self.end:g}", f"at most `settle`, {self.settle:g}", at="end")
        if not self.settle:
            raise wrong("settle is 0: no gate would be trained", "a share above 0, such as 0.5", at="settle")
        found = super().complete(name)
        return {key: value for key, value in found.items() if key not in _SHARES or key in given}


def label(step: Step) -> str:
    """Return the step's label, such as ``gates/both to 0.8 of parameters, tokens=1000000``.

    It names the token budget, without which what stays says nothing.
    """
    own = step.settings
    (share,) = (key for key in _SHARES if key in own)
    said = f"{own[share]:.4g}" if share == "keep" else f"{own[share]:.4g} of {share}"
    rest = {key: value for key, value in own.items() if key not in (share, "of", "tokens")}
    return ", ".join([f"{step.name}/{own['of']} to {said}", f"tokens={own['tokens']}", *words(rest, Gates)])
