"""Quantized checkpoints: integers and scales on disk, read as the weights that they stand for.

The layout is that of compressed-tensors, which stock transformers loads where that package is installed. A weight
NAME.weight (out, in) becomes NAME.weight_packed (I32, along the inputs four int8 or eight int4 to a word),
NAME.weight_scale (out, groups) and NAME.weight_shape. A Conv1D's (in, out) is written as (out, in), which transformers
does not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files import gguf_variant
from sparsebench.models.files.checkpoint import (
    CONV1D_TYPES,
    FETCH_AGAIN,
    FLOAT_DTYPES,
    Checkpoint,
    TensorInfo,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch

GROUP = 64
"""The default number of columns that share a scale in int4."""
INT4_GROUPS = (32, 64, 128, 256)
"""The group sizes, in columns, that torch's int4 kernel takes."""
KEY, METHOD, FLOAT = "quantization_config", "compressed-tensors", "float"


@dataclass(frozen=True)
class Codes:
    """A matrix (out, in) on a grid: ``values · scale``, in groups of ``group`` columns (None: whole rows).

    ``values`` (out, in) are int8, ``scale`` (out, groups) is in the checkpoint's dtype.
    """

    values: torch.Tensor
    scale: torch.Tensor
    group: int | None = None

    def expanded(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weights in ``dtype``, each rounded once."""
        import torch

        scale = self.scale
        if self.group is not None:
            scale = scale.repeat_interleave(self.group, 1)[:, : self.values.shape[1]]
        wide_dtype = torch.promote_types(scale.dtype, dtype)
        return self.values.to(wide_dtype).mul_(scale.to(wide_dtype)).to(dtype)

    def cpu(self) -> Codes:
        """Return a copy on the CPU."""
        return replace(self, values=self.values.cpu(), scale=self.scale.cpu())

    def cut(self, rows: tuple[int, int]) -> Codes:
        """Return the codes of the rows from ``rows[0]`` to before ``rows[1]``."""
        part = slice(*rows)
        return replace(self, values=self.values[part], scale=self.scale[part])


def groups_of(columns: int, group: int | None) -> int:
    """Return the number of groups that a matrix's columns form; the last may be narrower."""
    return math.ceil(columns / group) if group else 1


def parts_of(info: TensorInfo, scheme: Scheme, transposed: bool) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (name, dtype, shape) of the tensors that store a quantized float tensor ((in, out) where ``transposed``)."""
    rows, columns = info.shape[::-1] if transposed else info.shape
    return [
        (f"{info.name}_packed", "I32", (rows, math.ceil(columns * scheme.bits / 32))),
        (f"{info.name}_scale", info.dtype, (rows, groups_of(columns, scheme.group))),
        (f"{info.name}_shape", "I64", (2,)),
    ]


def stored_parts(codes: Codes, name: str, scheme: Scheme) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of the tensors that store a quantized weight NAME.weight."""
    import torch

    yield f"{name}_packed", _pack(codes.values, scheme.bits)
    yield f"{name}_shape", torch.tensor(codes.values.shape, device="cpu")
    yield f"{name}_scale", codes.scale


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int8 numbers (rows, n), each plus half of its range, into int32 words along rows, first in lowest bits."""
    import torch

    shifted = values.to(torch.int16).add_(1 << (bits - 1)).to(torch.uint8)
    padded = torch.nn.functional.pad(shifted, (0, -values.shape[1] % (32 // bits)))
    if bits == 4:
        halves = padded.unflatten(1, (-1, 2))
        padded = halves[..., 0] | (halves[..., 1] << 4)
    return padded.reshape(-1).contiguous().view(torch.int32).view(len(values), -1)


def _unpack(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Reverse ``_pack``."""
    import torch

    codes = words.reshape(-1).contiguous().view(torch.uint8).view(len(words), -1)
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(1)
    return codes[:, :columns].to(torch.int16).sub_(1 << (bits - 1)).to(torch.int8)


@dataclass(frozen=True)
class Scheme:
    """How all quantized weights of a checkpoint are stored.

    ``group`` is the number of columns that share a scale (None: whole rows).
    """

    bits: int
    group: int | None

    @property
    def encoding(self) -> str:
        """``int8`` or ``int4``."""
        return f"int{self.bits}"

    def check_kernels(self) -> None:
        """Raise UnsupportedError where no kernel multiplies weights stored in this scheme."""
        if self.bits == 8 and self.group:
            raise UnsupportedError(
                f"int8 is multiplied with one scale a row, not with one for {self.group} columns",
                "quantize without groups, or only score it",
            )
        if self.bits == 4 and self.group not in INT4_GROUPS:
            group_sizes = ", ".join(map(str, INT4_GROUPS))
            problem = f"torch's int4 kernel takes groups of {group_sizes} columns, not of {self.group}"
            raise UnsupportedError(problem, "quantize in one of these, or only score it")

    def config(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the ``quantization_config`` of a config.json whose weights ``names`` are stored in this scheme."""
        weights = {
            "num_bits": self.bits, "type": "int", "symmetric": True, "dynamic": False,
            "strategy": "group" if self.group else "channel", "group_size": self.group,
        }  # fmt: skip
        patterns = {re.sub(r"\d+", r"\\d+", re.escape(name.removesuffix(".weight"))) for name in names}
        scheme = {
            "targets": [f"re:(.*\\.)?{pattern}$" for pattern in sorted(patterns)],
            "weights": weights, "input_activations": None, "output_activations": None,
        }  # fmt: skip
        # Without `dequantize` weights stay packed until they run. Then T5's forward, which asks a layer for its weight,
        # finds none.
        return {
            "quant_method": METHOD, "format": "pack-quantized", "quantization_status": "compressed", "ignore": [],
            "config_groups": {"group_0": scheme}, "dequantize": True,
        }  # fmt: skip


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """Return how the weights of a checkpoint with this config.json are quantized; None where they are not.

    Raises UnsupportedError for a quantization that sparsebench does not write.
    """
    entry = config.get(KEY)
    if not entry:
        return None
    try:
        (group,) = entry["config_groups"].values()
        scheme = Scheme(group["weights"]["num_bits"], group["weights"]["group_size"])
        # Only what we would write ourselves can be read.
        written = scheme.config([])
        (ours,) = written["config_groups"].values()
        is_ours = all(entry[key] == written[key] for key in ("quant_method", "format")) and all(
            group.get(key) == ours[key] for key in ours if key != "targets"
        )
        numbers = (scheme.bits, 1 if scheme.group is None else scheme.group)
        if is_ours and scheme.bits in (4, 8) and all(type(number) is int and number > 0 for number in numbers):
            return scheme
    except (KeyError, ValueError, TypeError, AttributeError):
        pass  # refused below
    method = entry.get("quant_method", "an unnamed method") if isinstance(entry, dict) else entry
    raise UnsupportedError(
        f"the checkpoint is quantized by {str(method)[:40]}, which sparsebench cannot read "
        "(only its own int8 and int4)",
        "use the checkpoint that it was made from, and quantize it here",
    )


def encoding_of(config: Mapping[str, Any]) -> str:
    """Return ``float``, ``int8``, ``int4`` or ``gguf``. Raises UnsupportedError as ``scheme_of`` does."""
    if scheme := scheme_of(config):
        return scheme.encoding
    return gguf_variant.KEY if gguf_variant.is_gguf(config) else FLOAT


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint in ``folder``; quantized weights read as the floats that they stand for."""
    plain = Checkpoint(folder)
    return QuantizedCheckpoint(folder) if plain.config.get(KEY) else plain


def float_checkpoint(folder: Path, hint: str) -> Checkpoint:
    """Open the checkpoint in ``folder``. Raises ModelError, with ``hint`` as the way out, where its weights are integers."""
    checkpoint = Checkpoint(folder)
    if (encoding := encoding_of(checkpoint.config)) != FLOAT:
        raise ModelError(f"{folder}: its weights are quantized already ({encoding})", hint)
    return checkpoint


class QuantizedCheckpoint(Checkpoint):
    """A quantized folder with a float one's interface: ``tensors`` have the shape and dtype of dequantized weights.

    Their ``nbytes`` are those of the integers in the file, without scales; ``stored`` has the files' own tensors.
    """

    @cached_property
    def scheme(self) -> Scheme:
        """The scheme of the quantized weights. Raises ModelError where they are not quantized."""
        scheme = scheme_of(self.config)
        if scheme is None:
            raise ModelError(f"{self.folder}: its weights are not quantized")
        return scheme

    @property
    def transposed(self) -> bool:
        """Whether the model's own matrices are (in, out), as GPT-2's are."""
        return str(self.config.get("model_type")) in CONV1D_TYPES

    @cached_property
    def quantized(self) -> frozenset[str]:
        """The names of the quantized weights."""
        ends = (".weight_scale", ".weight_packed")
        return frozenset(name.rpartition("_")[0] for name in self.stored if name.endswith(ends))

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        scales_and_shapes = {f"{name}_{end}" for name in self.quantized for end in ("scale", "shape")}
        dequantized = {f"{name}_packed": self._dequantized(name) for name in self.quantized}
        stored = (dequantized.get(name, info) for name, info in self.stored.items() if name not in scales_and_shapes)
        return {info.name: info for info in stored}

    def _dequantized(self, name: str) -> TensorInfo:
        """Return a quantized weight as the float tensor that it stands for, with the bytes of its integers.

        Raises ModelError where its integers, scales and shape do not belong together.
        """
        stored = {part: self.stored[part] for part in self.stored_names(name)}
        scale, shape = stored.get(f"{name}_scale"), stored.get(f"{name}_shape")
        if scale and scale.dtype in FLOAT_DTYPES and shape and (shape.dtype, shape.shape) == ("I64", (2,)):
            rows, columns = super().load(f"{name}_shape").tolist()
            size = (columns, rows) if self.transposed else (rows, columns)
            expected = parts_of(TensorInfo(name, scale.dtype, size), self.scheme, self.transposed)
            if {(part, info.dtype, info.shape) for part, info in stored.items()} == set(expected):
                return replace(stored[f"{name}_packed"], name=name, dtype=scale.dtype, shape=size)
        problem = f"{self.folder}: {name}: its integers, scales and shape do not belong together"
        raise ModelError(problem, FETCH_AGAIN)

    def stored_names(self, name: str) -> tuple[str, ...]:
        ends = ("", "_packed", "_scale", "_shape") if name in self.quantized else ("",)
        return tuple(name + end for end in ends if name + end in self.stored)

    def words_and_scale(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the packed integers of a quantized weight as pages of its file, and its scales."""
        return self.mapped(f"{name}_packed"), super().load(f"{name}_scale")

    def codes(self, name: str) -> Codes:
        """Load the integers and scales of a quantized weight."""
        words = super().load(f"{name}_packed")
        values = _unpack(words, self.scheme.bits, self.tensors[name].shape[0 if self.transposed else 1])
        return Codes(values, super().load(f"{name}_scale"), self.scheme.group)

    def load(self, name: str, expert: int | None = None) -> torch.Tensor:
        """Load one tensor, or its slice ``expert``; a quantized one, always a matrix, whole and dequantized."""
        if name not in self.quantized:
            return super().load(name, expert)
        weights = self.codes(name).expanded(torch_dtype(self.tensors[name].dtype))
        return weights.T.contiguous() if self.transposed else weights

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Yield one tensor's entries in order, flat; a quantized one's all at once."""
        return iter([self.load(name).reshape(-1)]) if name in self.quantized else super().pieces(name)
