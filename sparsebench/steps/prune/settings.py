"""The settings of ``prune`` in a manifest: the fields that all methods share, and those of single methods."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from sparsebench.manifest.problems import one_of
from sparsebench.manifest.schema import (
    ROWS_OR_COLUMNS,
    NonEmpty,
    Pattern,
    Positive,
    Share,
    is_nm,
    pattern_sparsity,
    wrong,
)
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import Settings

LABELLED = ("sparsity", "granularity", "pattern", "allocation", "keep_zeros")
"""The fields that have words of their own in a label; the rest are written as they are."""
OWL = ("outlier", "spread")
"""The fields that only an allocation by outliers uses."""


class Prune(Settings):
    """The settings that all methods share."""

    reads_floats: ClassVar[bool] = True
    granularities: ClassVar[tuple[str, ...]] = ("layer", "global", "row")
    """The groups within which weights may compete; the first is the default, as published."""
    calibrated: ClassVar[bool] = False
    """Whether the method reads calibration text."""
    ranks: ClassVar[bool] = True
    """Whether the method ranks weights; otherwise it solves for those that stay."""

    sparsity: Share | None = None
    """Share of the prunable weights to remove, between 0 and 1; an N:M pattern fixes its own."""
    granularity: Literal["global", "layer", "row"] | None = None
    """The group within which weights compete: all prunable weights (`global`), their matrix (`layer`) or their output
    row (`row`); default: as the method was published (`layer` for magnitude and random)."""
    pattern: Pattern = "unstructured"
    """`unstructured`; `N:M` (N kept of every M along the input), which fixes the sparsity; blocks such as `4x4`; or,
    for methods that rank weights, whole `rows` (a layer's outputs) or `columns` (its inputs)."""
    allocation: Literal["uniform", "owl"] = "uniform"
    """How sparsity is spread over the transformer blocks: `uniform`, or `owl` (less in blocks with more outliers)."""
    propagate: Literal["pruned", "dense"] = "pruned"
    """Which activations a calibrated method reads: those of its own pruned blocks (`pruned`, as published), or the
    dense model's (`dense`), which lets all sparsities and methods share one pass."""
    outlier: Positive = 5.0
    """With `owl`: an outlier is a score above this multiple of the mean of its block's scores (M of the paper)."""
    spread: Share = 0.08
    """With `owl`: the blocks' sparsities differ by at most twice this (λ of the paper), before clipping."""
    keep_zeros: bool = False
    """Weights that are zero already stay zero, and `sparsity` is the share to remove of the others, as in PyTorch's
    PruningContainer. With N:M they count among the removed weights of their group. Default: zeros compete like other
    weights, and a method that updates weights may give them a value again."""

    @model_validator(mode="after")
    def _consistent(self) -> Prune:
        resolve_sparsity(self.sparsity, self.pattern)
        if self.granularity == "global" and (self.pattern != "unstructured" or self.allocation == "owl"):
            setting = f"pattern {self.pattern}" if self.pattern != "unstructured" else "`allocation: owl`"
            problem = f"{setting} cannot be combined with `granularity: global`"
            raise wrong(problem, "`granularity: layer` or `row`", at="granularity")
        if self.granularity == "row" and self.pattern in ROWS_OR_COLUMNS:
            raise wrong(f"whole {self.pattern} compete within their matrix", "`granularity: layer`", at="granularity")
        if is_nm(self.pattern) and self.allocation == "owl":
            problem = f"pattern {self.pattern} fixes every matrix's sparsity"
            raise wrong(problem, "`allocation: uniform`", at="allocation")
        return self

    def completed(self) -> Self:
        """Fill in the method's granularity and an N:M pattern's sparsity."""
        if self.granularity not in (None, *self.granularities):
            problem = f"`{self.name}` has no granularity `{self.granularity}`"
            raise wrong(problem, one_of(self.granularities), at="granularity")
        if self.pattern in ROWS_OR_COLUMNS and not self.ranks:
            ranking = "a method that ranks weights, such as magnitude or wanda"
            raise wrong(f"`{self.name}` does not remove whole {self.pattern}", ranking, at="pattern")
        default = "layer" if self.pattern in ROWS_OR_COLUMNS else self.granularities[0]
        filled = {"granularity": self.granularity or default, "sparsity": resolve_sparsity(self.sparsity, self.pattern)}
        return self.model_copy(update=filled)

    def idle(self) -> Collection[str]:
        """Return what only OWL uses, and only a method that reads text."""
        if self.allocation == "owl":
            return ()
        return OWL if self.calibrated else (*OWL, "propagate")

    @classmethod
    def alternatives(cls, swept: Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]] | None:
        """Separate N:M patterns, which fix the sparsity, from other patterns, which take the sparsities of a sweep."""
        patterns = swept.get("pattern", ["unstructured"])
        fixed_patterns = [pattern for pattern in patterns if is_nm(str(pattern))]
        if not fixed_patterns or len(fixed_patterns) == len(patterns):
            return None
        free_patterns = [pattern for pattern in patterns if pattern not in fixed_patterns]
        without_sparsity = {key: value for key, value in swept.items() if key not in ("sparsity", "pattern")}
        return [{**swept, "pattern": free_patterns}, {**without_sparsity, "pattern": fixed_patterns}]

    def reads_text(self) -> bool:
        return self.calibrated or self.allocation != "uniform"

    def draws(self) -> bool:
        return self.name == "random"

    def pass_key(self) -> Hashable:
        """Return the key of a pass; any method can use the dense model's activations."""
        if self.reads_text() and self.propagate == "dense":
            return ("calibrated",)
        return self.name, self.granularity, self.allocation

    def describe(self) -> str:
        """Return a label such as ``wanda+owl/row 2:4 50%``, followed by the options that differ from the defaults."""
        method = self.name if self.allocation == "uniform" else f"{self.name}+{self.allocation}"
        words = ["/".join(filter(None, (method, self.granularity))), *sparsity_words(self.pattern, self.sparsity)]
        if self.keep_zeros:
            words.append("of what is left")
        options = {key: value for key, value in self.unusual().items() if key not in LABELLED}
        return " ".join([*words, *(f"{key}={value}" for key, value in options.items())])


def sparsity_words(pattern: str, sparsity: float | None) -> list[str]:
    """Return a sparsity as labels have it: ``50%``, ``2:4 50%``, ``99.5%``."""
    percent = f"{round(100 * (sparsity or 0), 6):.8g}%"
    return [percent] if pattern == "unstructured" else [pattern, percent]


def resolve_sparsity(sparsity: float | None, pattern: str) -> float:
    """Return the share of the weights to remove, which an N:M pattern fixes.

    Raises PydanticCustomError where it is missing, or differs from the pattern's.
    """
    if not is_nm(pattern):
        if sparsity is None:
            raise wrong("`sparsity` is missing", "shares of the weights to remove, such as [0.5, 0.9]", at="sparsity")
        return sparsity
    fixed = pattern_sparsity(pattern)
    if sparsity is not None and abs(sparsity - fixed) > 1e-6:
        raise wrong(
            f"a pattern fixes the sparsity: {pattern} is {fixed:g}", "no `sparsity` beside it",
            "remove `sparsity`, or the pattern", "sparsity",
        )  # fmt: skip
    return fixed


class Mask(Settings):
    """The settings of masks from a file, which alone decide the weights to remove."""

    reads_floats: ClassVar[bool] = True
    needs: ClassVar = {"file": "a safetensors file of masks, such as masks.safetensors"}
    file_keys: ClassVar = ("file",)

    file: NonEmpty | None = None
    """A safetensors file with a tensor of 0 (prune) and 1 (keep) for each weight to prune, under the weight's name or
    that name plus `_mask`. Paths are relative to the manifest's folder. A result's id contains the file's hash."""

    def describe(self) -> str:
        """Return a label such as ``mask masks.safetensors``."""
        return f"{self.name} {Reference.parse(str(self.file)).name}"


class Magnitude(Prune):
    """Magnitude's settings."""

    norm: Literal[1, 2, "inf"] | None = None
    """With `pattern: rows` or `columns`: the order of the norm by which these are ranked (`n` of PyTorch's
    `ln_structured`); default: 2."""

    def completed(self) -> Self:
        """Fill in the norm of whole rows and columns; weights that are ranked one by one or in blocks have none."""
        if self.norm is not None and self.pattern not in ROWS_OR_COLUMNS:
            raise wrong(f"`norm` beside `pattern: {self.pattern}`", "`pattern: rows` or `columns`", at="norm")
        norm = (self.norm or 2) if self.pattern in ROWS_OR_COLUMNS else None
        return super().completed().model_copy(update={"norm": norm})

    def idle(self) -> Collection[str]:
        return super().idle() if self.pattern in ROWS_OR_COLUMNS else (*super().idle(), "norm")


class SparseGPT(Prune):
    """SparseGPT's settings."""

    former: ClassVar = {"columns": 128}

    damping: Positive = 0.01
    """The share of the Hessian's mean diagonal that is added to its diagonal; raised, with a note, if too small."""


class ALPS(Prune):
    """ALPS's settings."""

    former: ClassVar = {"damping": 0.01, "penalty": 0.1, "growth": 1.3, "iterations": 300, "refine": 10}
