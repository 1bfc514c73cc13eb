"""The settings of methods that prune while the whole model is trained: those of `recover`, and of the sparsity."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from sparsebench.manifest.schema import Count, Pattern, Share, is_nm, wrong
from sparsebench.steps.prune.settings import Prune, resolve_sparsity, sparsity_words
from sparsebench.steps.recover.settings import (
    Fraction,
    FractionOrZero,
    TaughtTraining,
    TrainingSettings,
    lists_as_values,
)


class TrainedPruning(TrainingSettings):
    """What every training that prunes has: the sparsity that it ends with."""

    sparsity: Share | None = None
    """Share of each prunable matrix to remove by the end, between 0 and 1; an N:M pattern fixes its own."""
    pattern: Pattern = "unstructured"
    """`unstructured`, or `N:M` (N kept of every M along the input)."""

    def completed(self) -> Self:
        """Fill in an N:M pattern's sparsity."""
        if self.pattern != "unstructured" and not is_nm(self.pattern):
            problem = f"pattern {self.pattern} while the model is trained"
            raise wrong(problem, "`unstructured`, or N:M such as 2:4", at="pattern")
        return super().completed().model_copy(update={"sparsity": resolve_sparsity(self.sparsity, self.pattern)})

    def describe(self) -> str:
        """Return a label such as ``gradual 50% start=0.1``."""
        words = self.training_words("sparsity", "pattern")
        return " ".join([self.name, *sparsity_words(self.pattern, self.sparsity), *words])

    @classmethod
    def alternatives(cls, swept: Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]] | None:
        """Separate N:M patterns from the sparsities of a sweep, as other methods do."""
        swept = lists_as_values(swept)
        return Prune.alternatives(swept) or [swept]


class Gradual(TrainedPruning, TaughtTraining):
    """The settings of `distill`, and how the sparsity grows during the training."""

    initial: Share = 0.0
    """The sparsity of the first masks. Weights that are zero already stay zero."""
    schedule: Literal["cubic", "constant"] = "cubic"
    """How sparsity grows: ever slower, as TensorFlow's `PolynomialDecay` (`cubic`); at once at `start` (`constant`)."""
    start: Share = 0.0
    """The share of the steps before the sparsity begins to grow."""
    end: Share = 0.75
    """The share of the steps after which the masks change no more; the remaining steps train the weights that stay."""
    frequency: Count = 10
    """The number of steps between two choices of masks. Each removes the lowest of the weights that `pattern` would
    remove at that step."""

    def completed(self) -> Self:
        completed = super().completed()
        sparsity = completed.sparsity or 0.0
        if self.schedule == "cubic" and self.initial > sparsity:
            raise wrong(f"initial is {self.initial:g}", f"at most `sparsity`, {sparsity:g}", at="initial")
        if self.schedule == "cubic" and self.start > self.end:
            raise wrong(f"start is {self.start:g}", f"at most `end`, {self.end:g}", at="start")
        return completed

    def idle(self) -> Collection[str]:
        return (*super().idle(), *(("initial", "end", "frequency") if self.schedule == "constant" else ()))


class Elsa(TrainedPruning):
    """The settings of ELSA: ADMM trains the whole model on its own loss and pulls it towards a sparse copy."""

    former: ClassVar = {**TrainingSettings.former, "schedule": "constant", "projection": "fisher"}

    tokens: Count = 2_000_000
    """The number of tokens to train on; the published run reads 67,108,864."""
    rate: Fraction = 2e-4
    """The highest learning rate (Adam)."""
    warm_up: FractionOrZero = 0.0
    """The share of the steps in which the learning rate rises to `rate`."""
    penalty: Annotated[float, Field(gt=0, lt=1e6)] = 0.01
    """λ: how strongly weights are pulled towards their sparse copy."""
    interval: Count = 32
    """The number of optimizer steps between two choices of the sparse copy."""

    def bytes_per_parameter(self) -> float:
        """Return those of a training; ADMM adds a sparse copy, multipliers and another copy of the weights."""
        return super().bytes_per_parameter() + 12.0

    def training_words(self, *without: str) -> list[str]:
        """Return the number of tokens too, even the default: the result of ADMM depends on its budget."""
        return [f"tokens={self.tokens}", *super().training_words(*without, "tokens")]
