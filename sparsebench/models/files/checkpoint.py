"""A checkpoint on disk, read tensor by tensor.

A safetensors file is an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.escape import is_text
from sparsebench.models.files.families import transformers_config, vocabulary_size
from sparsebench.paths import INDEX, WEIGHTS, check_contained, shard_names

if TYPE_CHECKING:
    import torch

ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element by safetensors dtype."""
_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}
CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers store (in, out) instead of (out, in)."""
FETCH_AGAIN = "fetch the file again"
"""The way out for a damaged file."""
_CONVERT_HINT = "convert the checkpoint to bfloat16, float16 or float32"
MAPPED_BYTES = 16 << 20
"""Bytes from which ``Checkpoint.mapped`` maps a tensor: only some rows of a vocabulary's table are used."""
PIECE_ENTRIES = 1 << 23
"""Entries per piece when a tensor is read in pieces."""
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class TensorInfo:
    """A tensor: ``dtype`` is safetensors' name. A stored one's ``begin`` and ``end`` are byte offsets into its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str = ""
    begin: int = 0
    end: int = 0

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.end - self.begin


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the JSON header of a safetensors file and the offset at which its data begins.

    Raises ModelError when the file is not a complete safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 0 < length <= min(size - 8, bounded.HEADER_BYTES):
                raise ModelError(f"{path}: not a safetensors file (bad header length)", FETCH_AGAIN)
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}", FETCH_AGAIN) from error
    header = bounded.parse_json(text, f"{path}: its safetensors header", ModelError, FETCH_AGAIN)
    tensors = tensor_infos(header, 8 + length, path)
    end = tensors[-1].end if tensors else 8 + length
    if end != size:
        raise ModelError(f"{path}: {size} bytes where its header promises {end}", FETCH_AGAIN)
    return header, 8 + length


def tensor_infos(header: Any, start: int, path: Path) -> list[TensorInfo]:
    """Return the tensors in the safetensors ``header`` of ``path`` in data order; ``start`` is the offset of the data.

    Raises ModelError, naming the tensor, when one begins before the previous one ends or its shape does not match its
    bytes. A header is thus checked before memory of the size that it states is allocated.
    """
    infos: list[TensorInfo] = []
    previous_end = start
    try:
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for name, entry in sorted(entries.items(), key=lambda named: named[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            info = TensorInfo(name, entry["dtype"], tuple(entry["shape"]), path.name, start + begin, start + end)
            if not (type(begin) is int and type(end) is int) or info.begin < previous_end or not _is_sound(info):
                described = f"{info.dtype} {info.shape}"[:200]
                problem = f"{path}: {name[:80]}: {described} cannot lie at bytes {str(begin)[:30]} to {str(end)[:30]}"
                raise ModelError(problem, FETCH_AGAIN)
            previous_end = info.end
            infos.append(info)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its safetensors header is damaged ({error!r})", FETCH_AGAIN) from error
    return infos


def _is_sound(info: TensorInfo) -> bool:
    """Return whether a tensor's name, dtype and shape are sound and, for a known dtype, its bytes are of that size."""
    if not isinstance(info.dtype, str) or not is_text(info.name) or len(info.shape) > 64:
        return False
    if not all(type(length) is int and 0 <= length < 1 << 63 for length in info.shape):
        return False
    size = ELEMENT_BYTES.get(info.dtype)
    return info.nbytes >= 0 and (size is None or info.numel * size == info.nbytes)


def whole_shards(index: Path) -> tuple[str, ...]:
    """Return the names of the weight files that an index lists. Raises ModelError where one is missing."""
    names = shard_names(index)
    if missing := next((name for name in names if not (index.parent / name).is_file()), None):
        problem = f"{index.parent / missing}: {index.name} names it, and it is not there"
        raise ModelError(problem, "the download is not complete: fetch the model again")
    return names


class Checkpoint:
    """A Hugging Face folder with safetensors weights, opened without loading any of them.

    Raises ModelError for a folder without config.json, or one that leads out of itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._pages: dict[str, mmap.mmap] = {}
        check_contained(self.folder)
        if not (self.folder / "config.json").is_file():
            raise ModelError(f"{self.folder}: no config.json", "a model folder holds config.json and *.safetensors")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json, unchanged."""
        return bounded.read_object(self.folder / "config.json")

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The names of the weight files that transformers would load, in order.

        Raises ModelError where there is none, or one that the index lists is missing.
        """
        if (self.folder / WEIGHTS).is_file():
            return (WEIGHTS,)
        index = self.folder / INDEX
        if not index.is_file():
            packed = any(path.suffix in (".packed", ".archive") for path in self.folder.glob("*.safetensors.*"))
            hint = "it is packed: sparsebench unpack" if packed else "name a folder with safetensors weights"
            raise ModelError(f"{self.folder}: no model.safetensors", hint)
        return whole_shards(index)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The model's tensors by name, in file order and within a file in data order."""
        return self.stored

    @cached_property
    def stored(self) -> dict[str, TensorInfo]:
        """The files' tensors by name: the model's own, and for quantized weights their integers, scales and so on."""
        infos: dict[str, TensorInfo] = {}
        for file in self.files:
            for info in tensor_infos(*read_header(self.folder / file), self.folder / file):
                if info.name in infos:
                    raise ModelError(
                        f"{self.folder}: {info.name} is in {infos[info.name].file} and in {file}", FETCH_AGAIN
                    )
                infos[info.name] = info
        return infos

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The names under which the files hold a tensor: its own, or those of its integers, scales and so on."""
        return (name,)

    def load(self, name: str, expert: int | None = None) -> torch.Tensor:
        """Read one tensor, or its slice ``expert``, into its own memory (a mapping would count as the file's pages)."""
        info = self.stored[name]
        if expert is None:
            return _read(self.folder, info, 0, info.nbytes).reshape(info.shape)
        size = info.nbytes // info.shape[0]
        return _read(self.folder, info, expert * size, size).reshape(info.shape[1:])

    def mapped(self, name: str, expert: int | None = None) -> torch.Tensor:
        """Return a tensor or its slice; a large one as pages of its file, which are read on access and can be dropped."""
        import torch

        info = self.stored.get(name)
        if info is None or info.nbytes < MAPPED_BYTES or info.begin % ELEMENT_BYTES.get(info.dtype, 1):
            return self.load(name, expert)
        if info.file not in self._pages:
            with (self.folder / info.file).open("rb") as file:
                # A private, writable mapping because torch has no read-only tensors.
                self._pages[info.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        pages, dtype = self._pages[info.file], torch_dtype(info.dtype)
        tensor = torch.frombuffer(pages, dtype=dtype, count=info.numel, offset=info.begin).view(info.shape)
        return tensor if expert is None else tensor[expert]

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Yield one tensor's entries in order, flat, ``PIECE_ENTRIES`` at a time, so that memory stays small."""
        return pieces_of(self.folder, self.tensors[name])

    def items(self) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
        """Yield all tensors one after another, each loaded when it is reached."""
        for info in self.tensors.values():
            yield info, self.load(info.name)

    @cached_property
    def ties(self) -> dict[str, str]:
        """The names that repeat an earlier tensor (tied embeddings stored twice), each with that tensor's name.

        Only token embeddings and output heads are ever tied, so only vocabulary-sized tensors outside the blocks are
        compared: two matrices of a block that were pruned to nothing are equal, not tied. Whether two tables of zeros
        are tied, the configuration decides.
        """
        vocabulary = vocabulary_size(self.config)
        if vocabulary is None or vocabulary <= 0:
            return {}
        ties: dict[str, str] = {}
        originals: list[TensorInfo] = []
        for table in self.tensors.values():
            if len(table.shape) != 2 or table.shape[0] < vocabulary or re.search(r"\.\d+\.", table.name):
                continue
            twin = next((original for original in originals if self._tied(original, table)), None)
            if twin:
                ties[table.name] = twin.name
            else:
                originals.append(table)
        return ties

    def _tied(self, first: TensorInfo, second: TensorInfo) -> bool:
        """Compare two tensors chunk by chunk: an untied head differs in the first chunk."""
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        all_zero = True
        with (self.folder / first.file).open("rb") as left, (self.folder / second.file).open("rb") as right:
            left.seek(first.begin)
            right.seek(second.begin)
            for start in range(0, first.nbytes, _CHUNK_BYTES):
                piece = left.read(min(_CHUNK_BYTES, first.nbytes - start))
                if piece != right.read(len(piece)):
                    return False
                all_zero = all_zero and piece.count(0) == len(piece)
        if not all_zero:
            return True
        return bool(getattr(transformers_config(self.config).get_text_config(), "tie_word_embeddings", True))


def pieces_of(folder: Path, info: TensorInfo) -> Iterator[torch.Tensor]:
    """Yield the entries of a tensor in a file of ``folder`` in order, flat, ``PIECE_ENTRIES`` at a time."""
    step = PIECE_ENTRIES * element_bytes(info.dtype)
    for start in range(0, info.nbytes, step):
        yield _read(folder, info, start, min(step, info.nbytes - start))


def _read(folder: Path, info: TensorInfo, start: int, size: int) -> torch.Tensor:
    """Read ``size`` bytes of a tensor from byte ``start`` on, as a flat tensor."""
    import torch

    buffer = torch.empty(size, dtype=torch.uint8)
    if bounded.read_into(folder / info.file, buffer.numpy().data, info.begin + start) < size:
        raise ModelError(f"{info.file}: ends inside tensor {info.name}", FETCH_AGAIN)
    return buffer.view(torch_dtype(info.dtype))


def element_bytes(dtype: str) -> int:
    """Return the bytes of one element of a safetensors dtype. Raises ModelError for one that is not handled."""
    if dtype not in ELEMENT_BYTES:
        raise ModelError(f"dtype {dtype} is not handled", _CONVERT_HINT)
    return ELEMENT_BYTES[dtype]


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype name. Raises ModelError for one that is not handled."""
    import torch

    if name not in _TORCH_NAMES:
        raise ModelError(f"dtype {name} is not handled", _CONVERT_HINT)
    return getattr(torch, _TORCH_NAMES[name])


def dtype_name(dtype: object) -> str:
    """Return the name of a torch dtype, such as ``bfloat16``; of a text, the name in it."""
    return str(dtype).removeprefix("torch.")


def safetensors_dtype(dtype: torch.dtype, name: str) -> str:
    """Return the safetensors name of ``dtype``, the dtype of tensor ``name``. Raises ModelError for one not handled."""
    for code, torch_name in _TORCH_NAMES.items():
        if str(dtype) == f"torch.{torch_name}":
            return code
    raise ModelError(f"{name}: {dtype} is not handled", _CONVERT_HINT)
