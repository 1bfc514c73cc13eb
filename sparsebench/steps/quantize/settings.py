"""The settings of ``quantize`` in a manifest, for each number format."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from sparsebench.errors import Refusal
from sparsebench.manifest.schema import Count, Positive, wrong
from sparsebench.models.files.quantized import GROUP, Scheme
from sparsebench.models.gguf_writer import QUANTIZED, UNEVEN, gguf_refusal
from sparsebench.steps.contract import Settings, Step


class Int8(Settings):
    """Weights in 8 bits, one scale for each row."""

    reads_floats: ClassVar[bool] = True
    leaves_integers: ClassVar[bool] = True
    former: ClassVar = {"symmetric": True}

    rounding: Literal["nearest", "gptq"] = "nearest"
    """Round to the `nearest` value of the grid, or column by column, each time adjusting the columns to the right
    (`gptq`, which reads calibration text)."""
    damping: Positive = 0.01
    """With `gptq`: the share of the Hessian's mean diagonal that is added to its diagonal."""

    @property
    def scheme(self) -> Scheme:
        """The format in which the weights are stored."""
        return Scheme(8, None)

    def idle(self) -> Collection[str]:
        return ("damping",) if self.rounding == "nearest" else ()

    def reads_text(self) -> bool:
        return self.rounding == "gptq"

    def pass_key(self) -> Hashable:
        return self.rounding


class Int4(Int8):
    """Weights in 4 bits, one scale for each group of columns of a row."""

    group: Count = GROUP
    """The number of columns that share a scale."""
    scale: Literal["range", "search"] = "range"
    """The `range` of the weights gives the scale, or a `search` for the scale with the least squared error, of either
    sign and clamping the largest weights where that helps (not with `gptq`)."""

    @property
    def scheme(self) -> Scheme:
        return Scheme(4, self.group)

    def completed(self) -> Self:
        if self.scale == "search" and self.rounding == "gptq":
            raise wrong("`scale: search` beside `gptq`", "rounding: nearest", at="scale")
        return super().completed()


class Gguf(Settings):
    """Weights in a type of llama.cpp's, in a GGUF file; embeddings and output head are rounded too."""

    needs: ClassVar = {"type": f"one of {', '.join(QUANTIZED)}"}
    calculates_with: ClassVar = ("gguf", "xllamacpp")

    type: Literal["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"] | None = None
    """The type: a number of bits, and how blocks of weights share scales. `_M` is a mixture, in which some matrices get
    more bits. It needs the package xllamacpp."""
    importance: bool = False
    """Whether errors are weighted by the mean squares of a matrix's inputs, from calibration text (llama.cpp's
    importance matrix)."""

    def reads_text(self) -> bool:
        return self.importance

    def pass_key(self) -> Hashable:
        return self.name, self.importance

    def describe(self) -> str:
        return f"gguf {self.type}{' importance' * self.importance}"

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Return why GGUF cannot hold the model; None before its config.json is known."""
        return gguf_refusal(config) if config else None

    def refuses_chain(self, before: Sequence[Step]) -> Refusal | None:
        return UNEVEN if any(getattr(step.settings, "uneven", False) for step in before) else None

    def closing_key(self) -> str:
        """Return the type: a step behind would change the floats and not the file."""
        return "type"


def settings() -> dict[str, type[Settings]]:
    """Return each number format's settings class, by its name."""
    return {"int8": Int8, "int4": Int4, "gguf": Gguf}
