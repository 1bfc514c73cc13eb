"""The settings of gates: those of `distill`, and how much of the model stays; and the table of all criteria."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from sparsebench.errors import Refusal
from sparsebench.manifest.schema import Share, wrong
from sparsebench.models.shape.architectures import architecture_of
from sparsebench.steps.contract import Settings
from sparsebench.steps.recover.settings import TaughtTraining, TrainingSettings
from sparsebench.steps.shrink.choosing import REAP
from sparsebench.steps.shrink.settings import (
    DEPTH,
    SHARES,
    WIDTH,
    Depth,
    Flap,
    Listed,
    RandomCut,
    Reap,
    Shrink,
    Taylor,
    Width,
    uneven_refusal,
)


class Gates(Shrink, TaughtTraining):
    """Learns a gate for each neuron and head while the whole model is trained, and removes those whose gates close."""

    calculates_with: ClassVar[tuple[str, ...]] = TrainingSettings.calculates_with
    file_keys: ClassVar[tuple[str, ...]] = ()
    multiple_of: ClassVar[int] = 1

    parameters: Annotated[Share, Field(gt=0, lt=1)] | None = None
    """The share of the blocks' parameters that stays, between 0 and 1. The alternative is `keep`."""
    keep: Annotated[Share, Field(gt=0, lt=1)] | None = None
    """The share of the neurons, or of the heads, that stays."""
    of: Literal["neurons", "heads", "both"] = "both"
    """What is removed. Heads go in whole groups that share keys and values. With `both`, the same share of neurons and
    heads goes, and neurons make up for what whole groups leave over."""
    uneven: bool = False
    """Whether one Lagrangian covers all blocks, so that some lose more than others; otherwise each block has its own.
    Such a model is written in transformers' `per_layer_config`, which only sparsebench loads. Not for
    encoder-decoders."""

    def completed(self) -> Self:
        shares = [key for key in SHARES if getattr(self, key) is not None]
        if len(shares) != 1:
            problem = " beside ".join(f"`{key}`" for key in shares) or "no share of what stays"
            raise wrong(problem, "one of them, such as `parameters: 0.8`", at="parameters")
        return super().completed()

    def idle(self) -> Collection[str]:
        return (*super().idle(), *(key for key in SHARES if getattr(self, key) is None))

    def on_device(self) -> bool:
        return True

    def describe(self) -> str:
        """Return a label such as ``gates/both to 0.8 of parameters, tokens=1000000``: results depend on the budget."""
        share = f"{self.keep:.4g}" if self.keep is not None else f"{self.parameters:.4g} of parameters"
        words = self.training_words(*SHARES, "of", "tokens")
        return ", ".join([f"{self.name}/{self.of} to {share}", f"tokens={self.tokens}", *words])

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        refusal = super().refuses(config) or (uneven_refusal(config) if self.uneven else None)
        if not refusal and architecture_of(config).mixture:
            words = f"{config.get('model_type')}: gates are not learned for mixtures of experts"
            return Refusal(words, "another criterion")
        return refusal


def settings() -> dict[str, type[Settings]]:
    """Return each criterion's class of settings, by the criterion's name."""
    return {
        **dict.fromkeys(DEPTH, Depth),
        **dict.fromkeys(WIDTH, Width),
        "flap": Flap,
        "taylor": Taylor,
        REAP: Reap,
        "random": RandomCut,
        "list": Listed,
        "gates": Gates,
    }
