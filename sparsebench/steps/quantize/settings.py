"""The settings of ``quantize`` in a manifest, for each number format."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import ClassVar, Literal, Self

from sparsebench.manifest.schema import Count, wrong
from sparsebench.steps.contract import Settings
from sparsebench.steps.grid import GROUP


class Grid8(Settings):
    """Weights in 8 bits, one scale for each row."""

    former: ClassVar = {"symmetric": True}

    rounding: Literal["nearest", "gptq"] = "nearest"
    """Round to the `nearest` value of the grid, or column by column, each time adjusting the columns to the right
    (`gptq`, which reads calibration text)."""
    damping: float = 0.01
    """With `gptq`: the share of the Hessian's mean diagonal that is added to its diagonal."""

    def completed(self) -> Self:
        """Raise PydanticCustomError for a damping that is not above 0."""
        if self.damping <= 0:
            raise wrong(f"a damping of {self.damping:g}", "a share above 0, such as 0.01", at="damping")
        return super().completed()

    def idle(self) -> Collection[str]:
        """Return the damping for rounding to the nearest, which does not use it."""
        return ("damping",) if self.rounding == "nearest" else ()

    def reads_text(self) -> bool:
        """Return whether GPTQ rounds."""
        return self.rounding == "gptq"

    def pass_key(self) -> Hashable:
        """Return the rounding."""
        return self.rounding


class Grid4(Grid8):
    """Weights in 4 bits, one scale for each group of columns of a row."""

    group: Count = GROUP
    """The number of columns that share a scale."""


def settings() -> dict[str, type[Settings]]:
    """Return each number format's settings class, by its name."""
    return {"int8": Grid8, "int4": Grid4}
