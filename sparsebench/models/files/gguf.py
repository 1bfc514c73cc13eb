"""GGUF files: their header is checked before transformers reads them, because that loops over any counts in it."""

from __future__ import annotations

import math
import mmap
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError, library_errors
from sparsebench.manifest.names import Family
from sparsebench.models.files.families import auto_class
from sparsebench.paths import temporary_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type's number; 8 is a string, 9 an array."""
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8


def write_first_blocks(file: Path, out: Path, blocks: int) -> Path:
    """Write the GGUF ``file`` with its first ``blocks`` blocks only, tensors as they are; return ``out``."""
    import gguf

    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for key, field in reader.fields.items():
        value = field.contents()
        if key == f"{architecture}.block_count":
            value = blocks = min(blocks, value)
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        number = re.match(r"blk\.(\d+)\.", tensor.name)
        if number is None or int(number[1]) < blocks:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def check(path: Path) -> None:
    """Raise ModelError for a file whose header is damaged, or states more than the file can hold."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # no empty file can be mapped
                _Header(content).check()
        except (ValueError, KeyError, struct.error) as error:
            raise ModelError(f"{path}: its GGUF header is damaged ({error!r})", "fetch the file again") from error


class _Header:
    """A reader at a position in the file; reading past its end raises struct.error or ValueError."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.position = 4  # after the magic
        self.entries_left = bounded.JSON_VALUES

    def check(self) -> None:
        """Go through all keys and tensors. Raises ValueError also for more weights than the file has bits."""
        if (version := self._number("I")) not in (2, 3):
            raise ValueError(f"version {version}")
        tensors, keys = self._count(), self._count()
        names, architecture, blocks = set(), b"", False
        for _ in range(keys):
            names.add(name := self._text())
            code = self._number("I")
            if name == b"general.architecture" and code == _STRING:
                architecture = self._text()
            else:
                self._skip_value(code)
        weights = 0
        for _ in range(tensors):
            blocks |= b"blk." in self._text()
            if (dimensions := self._number("I")) > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            weights += math.prod(self._number("Q") for _ in range(dimensions))
            self._skip(12)
        if blocks and architecture + b".block_count" not in names:
            # transformers would assume its default number, and make the weights up.
            raise ValueError("it does not say how many blocks there are")
        if weights > 8 * len(self.content):
            raise ValueError(f"{weights:,} weights in {len(self.content):,} bytes")

    def _text(self) -> bytes:
        size = self._number("Q")
        self._skip(size)
        return self.content[self.position - size : self.position]

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip(self._number("Q"))
        elif kind == _ARRAY:
            inner, count = self._number("I"), self._count()
            if inner == _STRING:
                for _ in range(count):
                    self._skip_value(inner)
            else:
                self._skip(count * _VALUE_BYTES[inner])
        else:
            self._skip(_VALUE_BYTES[kind])

    def _count(self) -> int:
        count = self._number("Q")
        self.entries_left -= count
        if self.entries_left < 0:
            raise ValueError(f"more than {bounded.JSON_VALUES:,} entries")
        return count

    def _number(self, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.position)
        self.position += struct.calcsize(code)
        return int(value)

    def _skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self.content):
            raise ValueError("it ends inside a value")


def load_gguf(file: Path, family: Family, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file by transformers: the model, dequantized, and the file's tokenizer.

    Nothing beside the file is read: an adapter there would replace the model. Raises ModelError for a file that
    transformers cannot load, for missing weights, which transformers makes up, and for values beyond float16.
    """
    import torch
    from transformers import AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    check(file)
    disable_progress_bar()
    location: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    # Without `dequantize` the model counts as quantized and cannot be saved.
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "quantization_config": GgufConfig(dequantize=True)}
    with temporary_folder() as alone:
        (Path(alone) / file.name).symlink_to(file.resolve())
        with library_errors(
            f"{file}: transformers cannot load it as {family}", "check the family, or fetch the file again"
        ):
            model, info = auto_class(family, {}).from_pretrained(
                alone, trust_remote_code=False, output_loading_info=True, **location, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(alone, trust_remote_code=False, **location)
    if missing := sorted(set(info["missing_keys"]) - set(model.all_tied_weights_keys)):
        problem = f"{file}: {len(missing)} weights are missing (the first is {missing[0]})"
        raise ModelError(problem, "its header does not fit its tensors: fetch the file again")
    for name, tensor in model.state_dict().items():
        if dtype == "float16" and bool(tensor.isinf().any()):
            raise ModelError(f"{file}: {name} reaches more than float16 holds", "use bfloat16")
    return model, tokenizer
