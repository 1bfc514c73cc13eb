"""The settings of methods that prune while the whole model is trained: `recover`'s, and how many weights are to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sparsebench.manifest.schema import Count, Pattern, Share, is_nm, pattern_sparsity, wrong
from sparsebench.steps.prune.settings import Prune
from sparsebench.steps.recover.step import Distill, TrainingSettings, together


class Gradual(Distill):
    """What `distill` may say, and how the sparsity grows while it trains."""

    by: Literal["magnitude", "movement", "rigl"] = "magnitude"
    """Which weights go: the smallest (`magnitude`); those that the training moves towards zero the most, of which some may come
    back (`movement`); or the sparsity is there from the beginning, and now and then the smallest that stay make room for zeros
    with the largest gradients (`rigl`)."""
    sparsity: Share | None = None
    """Share of each prunable matrix to remove in the end, between 0 and 1; an N:M pattern fixes its own."""
    pattern: Pattern = "unstructured"
    """`unstructured`, or `N:M` (N kept of every M along the input): each time that weights go, the smallest of those that the
    pattern would remove by then."""
    initial: Share = 0.0
    """The share that goes first; what is zero already stays so besides."""
    schedule: Literal["cubic", "constant"] = "cubic"
    """How it grows: `cubic`, ever slower, as TensorFlow's `PolynomialDecay`; or all at once, at `start` (`constant`)."""
    start: Share = 0.0
    """The share of the steps before it begins to grow."""
    end: Share = 0.75
    """The share of the steps after which it grows no more; the rest trains what is left."""
    frequency: Count = 10
    """Steps between two choices of what goes."""
    drop_fraction: Share = 0.3
    """With `rigl`: the share of the remaining weights that is replaced at first; it falls along half a cosine to 0 at `end`."""

    def complete(self, name: str) -> dict[str, Any]:
        """Without what is not looked at, with an N:M pattern's sparsity filled in."""
        for key in ("initial", "schedule", "start") if self.by == "rigl" else ():
            if key in self.model_fields_set:
                raise wrong(f"`{key}` beside `by: rigl`", "none: the sparsity is there from the beginning", at=key)
        if self.by == "rigl" and self.pattern != "unstructured":
            free = "`unstructured`: what comes back is chosen from the whole matrix"
            raise wrong(f"pattern {self.pattern} beside `by: rigl`", free, at="pattern")
        sparsity = _aim(self.sparsity, self.pattern, self.train)
        if self.initial > sparsity:
            raise wrong(f"initial is {self.initial:g}", f"at most `sparsity`, {sparsity:g}", at="initial")
        if self.start > self.end:
            raise wrong(f"start is {self.start:g}", f"at most `end`, {self.end:g}", at="start")
        found = super().complete(name) | {"sparsity": sparsity}
        idle = ("initial", "end", "frequency") if self.schedule == "constant" else ()
        idle = ("initial", "schedule", "start") if self.by == "rigl" else ("drop_fraction", *idle)
        return {key: value for key, value in found.items() if key not in idle}

    @classmethod
    def alternatives(cls, given: Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]] | None:
        """As of other methods."""
        given = together(given)
        return Prune.alternatives(given) or [given]


class Elsa(TrainingSettings):
    """The whole model on its own loss, pulled towards weights that are as sparse as they are to be, by ADMM."""

    tokens: Count = 2_000_000
    """How many tokens are trained on; the published run reads 67,108,864."""
    rate: float = 2e-4
    """The highest learning rate (Adam)."""
    warm_up: float = 0.0
    """The share of the steps in which the rate rises to it."""
    sparsity: Share | None = None
    """Share of each prunable matrix to remove, between 0 and 1; an N:M pattern fixes its own."""
    pattern: Pattern = "unstructured"
    """`unstructured`, or `N:M` (N kept of every M along the input)."""
    penalty: float = 0.01
    """λ: how strongly weights are pulled towards their sparse copy."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Whether λ is the same all the time, or grows from 0 to it along half a cosine."""
    interval: Count = 32
    """Optimizer steps between two choices of the sparse copy."""
    projection: Literal["fisher", "magnitude"] = "fisher"
    """What the sparse copy keeps: the weights whose square times Adam's second moment is largest, or the largest."""

    def complete(self, name: str) -> dict[str, Any]:
        """With an N:M pattern's sparsity filled in."""
        sparsity = _aim(self.sparsity, self.pattern, self.train)
        if not 0 < self.penalty < 1e6:
            raise wrong(f"penalty is {self.penalty:g}", "a number above 0, such as 0.01", at="penalty")
        return super().complete(name) | {"sparsity": sparsity}

    @classmethod
    def alternatives(cls, given: Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]] | None:
        """As of other methods."""
        return Prune.alternatives(given)


def _aim(sparsity: float | None, pattern: str, train: str) -> float:
    """The sparsity of the end."""
    if train != "weights":
        raise wrong(f"`train: {train}` while weights go", "`train: weights`", at="train")
    if pattern != "unstructured" and not is_nm(pattern):
        raise wrong(f"pattern {pattern} while the model is trained", "`unstructured`, or N:M such as 2:4", at="pattern")
    if sparsity is None and pattern == "unstructured":
        raise wrong("`sparsity` is missing", "the share of the weights to remove, such as 0.8", at="sparsity")
    fixed = sparsity if pattern == "unstructured" else pattern_sparsity(pattern)
    assert fixed is not None
    if sparsity is not None and abs(sparsity - fixed) > 1e-6:
        raise wrong(f"a pattern fixes the sparsity: {pattern} is {fixed:g}", "no `sparsity` beside it", at="sparsity")
    return fixed
