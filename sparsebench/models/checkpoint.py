"""A checkpoint on disk, read and written tensor by tensor.

A safetensors file is an 8-byte little-endian header length, a JSON header, then the tensors' bytes. The header can be
written before the data, so a whole sweep of outputs streams through memory one tensor at a time, for shards of any
size.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.escape import is_text
from sparsebench.models.building import appear, beside
from sparsebench.models.safety import NOTES, copy_companion, left_out, note_left_out
from sparsebench.paths import INDEX, WEIGHTS, check, shards

if TYPE_CHECKING:
    import torch

ITEM_SIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = {"F64", "F32", "F16", "BF16"}
SHARD = 4 << 30
"""Bytes of weights per file in the layouts that ``lay_out`` makes."""
_CONVERT = "convert the checkpoint to bfloat16, float16 or float32"
PIECE = 1 << 23
"""Entries per piece when a tensor is read in pieces."""
_CHUNK = 1 << 22
_FOREIGN_FILES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".tflite"}
_FOREIGN_FOLDERS = {"onnx", "openvino", "coreml", "original", "runs"}


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: ``begin`` and ``end`` are byte offsets into its file, ``dtype`` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

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
            if not 0 < length <= min(size - 8, bounded.HEADER):
                raise ModelError(f"{path}: not a safetensors file (bad header length)", "fetch the file again")
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}", "fetch the file again") from error
    header = bounded.parse(text, f"{path}: its safetensors header", ModelError, "fetch the file again")
    tensors = tensor_infos(header, 8 + length, path)
    end = tensors[-1].end if tensors else 8 + length
    if end != size:
        raise ModelError(f"{path}: {size} bytes where its header promises {end}", "fetch the file again")
    return header, 8 + length


def tensor_infos(header: Any, start: int, path: Path) -> list[TensorInfo]:
    """Return the tensors in the safetensors ``header`` of ``path`` in data order; ``start`` is the offset of the data.

    Raises ModelError, naming the tensor, when one begins before the previous one ends or its shape does not match its
    bytes. A header is thus checked before memory of the size that it states is allocated.
    """
    try:
        named = [(entry["data_offsets"], name, entry) for name, entry in header.items() if name != "__metadata__"]
        named.sort(key=itemgetter(0))
        found, last = [], start
        for (begin, end), name, entry in named:
            info = TensorInfo(name, entry["dtype"], tuple(entry["shape"]), path.name, start + begin, start + end)
            if not (type(begin) is int and type(end) is int) or info.begin < last or not _fits(info):
                told = f"{name[:80]}: {info.dtype} {info.shape}"[:200]
                message = f"{path}: {told} cannot lie at bytes {str(begin)[:30]} to {str(end)[:30]}"
                raise ModelError(message, "fetch the file again")
            last = info.end
            found.append(info)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its safetensors header is damaged ({error!r})", "fetch the file again") from error
    return found


def _fits(info: TensorInfo) -> bool:
    """Return whether a tensor's name, dtype and shape are sound and, for a known dtype, its bytes are of that size."""
    if not isinstance(info.dtype, str) or not is_text(info.name) or len(info.shape) > 64:
        return False
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in info.shape):
        return False
    size = ITEM_SIZE.get(info.dtype)
    return info.nbytes >= 0 and (size is None or info.numel * size == info.nbytes)


def whole_shards(index: Path) -> tuple[str, ...]:
    """Return the names of the weight files that an index lists. Raises ModelError where one is missing."""
    names = shards(index)
    if missing := next((name for name in names if not (index.parent / name).is_file()), None):
        raise ModelError(
            f"{index.parent / missing}: {index.name} names it, and it is not there",
            "the download is not complete: fetch the model again",
        )
    return names


class Checkpoint:
    """A Hugging Face folder with safetensors weights, opened without loading any of them.

    Raises ModelError for a folder without config.json, or one that leads out of itself (``paths.check``).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        check(self.folder)
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
            packed = next(self.folder.glob("*.safetensors.packed"), None)
            way = "it is packed: sparsebench unpack" if packed else "name a folder with safetensors weights"
            raise ModelError(f"{self.folder}: no model.safetensors", way)
        return whole_shards(index)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The model's tensors by name, in file order and within a file in data order."""
        return self.stored

    @cached_property
    def stored(self) -> dict[str, TensorInfo]:
        """The files' tensors by name: the model's own, and for quantized weights their integers, scales and so on."""
        found: dict[str, TensorInfo] = {}
        for file in self.files:
            header, start = read_header(self.folder / file)
            found |= {info.name: info for info in tensor_infos(header, start, self.folder / file)}
        return found

    def parts(self, name: str) -> tuple[str, ...]:
        """The names under which the files hold a tensor: its own, or those of its integers, scales and so on."""
        return (name,)

    def load(self, name: str, index: int | None = None) -> torch.Tensor:
        """Read one tensor, or its slice ``index``, into its own memory (a mapping would count as the file's pages)."""
        info = self.stored[name]
        if index is None:
            return _read(self.folder, info, 0, info.nbytes).reshape(info.shape)
        size = info.nbytes // info.shape[0]
        return _read(self.folder, info, index * size, size).reshape(info.shape[1:])

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Yield one tensor's entries in order, flat, ``PIECE`` at a time, so that memory stays small."""
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
        text = self.config.get("text_config")
        vocabulary = self.config.get("vocab_size") or (text if isinstance(text, dict) else {}).get("vocab_size")
        if not isinstance(vocabulary, int):
            return {}
        groups: dict[tuple[Any, ...], list[TensorInfo]] = {}
        for info in self.tensors.values():
            in_block = re.search(r"\.\d+\.", info.name)
            if len(info.shape) == 2 and vocabulary > 0 and info.shape[0] >= vocabulary and not in_block:
                groups.setdefault((info.dtype, info.shape), []).append(info)
        repeats: dict[str, str] = {}
        for group in groups.values():
            kept: list[TensorInfo] = []
            for info in group:
                twin = next((earlier for earlier in kept if self._tied(earlier, info)), None)
                if twin:
                    repeats[info.name] = twin.name
                else:
                    kept.append(info)
        return repeats

    def _tied(self, one: TensorInfo, other: TensorInfo) -> bool:
        """Compare two tensors chunk by chunk: an untied head differs in the first chunk."""
        zeros = True
        with (self.folder / one.file).open("rb") as left, (self.folder / other.file).open("rb") as right:
            left.seek(one.begin)
            right.seek(other.begin)
            for start in range(0, one.nbytes, _CHUNK):
                piece = left.read(min(_CHUNK, one.nbytes - start))
                if piece != right.read(len(piece)):
                    return False
                zeros = zeros and piece.count(0) == len(piece)
        if not zeros:
            return True
        from sparsebench.models.types import transformers_config

        return bool(getattr(transformers_config(self.config).get_text_config(), "tie_word_embeddings", True))


def pieces_of(folder: Path, info: TensorInfo) -> Iterator[torch.Tensor]:
    """Yield the entries of a tensor in a file of ``folder`` in order, flat, ``PIECE`` at a time."""
    step = PIECE * element_bytes(info.dtype)
    for start in range(0, info.nbytes, step):
        yield _read(folder, info, start, min(step, info.nbytes - start))


def _read(folder: Path, info: TensorInfo, start: int, size: int) -> torch.Tensor:
    """Read ``size`` bytes of a tensor from byte ``start`` on, as a flat tensor."""
    import torch

    buffer = torch.empty(size, dtype=torch.uint8)
    with (folder / info.file).open("rb", buffering=0) as file:
        file.seek(info.begin + start)
        view = buffer.numpy().data
        done = 0
        while done < size:
            got = file.readinto(view[done:])
            if not got:
                raise ModelError(f"{info.file}: ends inside tensor {info.name}", "fetch the file again")
            done += got
    return buffer.view(torch_dtype(info.dtype))


def companions(folder: Path) -> list[Path]:
    """Return what a model folder holds beside its weights: configuration, tokenizer, pooling.

    Left out are weights of any format, their indexes, hidden files and ``sparsebench.json``.
    """
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and path.name != NOTES
        and not path.name.endswith(".index.json")
        and path.suffix not in _FOREIGN_FILES
        and path.name not in _FOREIGN_FOLDERS
    ]


def lay_out(tensors: list[tuple[str, str, tuple[int, ...]]]) -> list[TensorInfo]:
    """Lay out new files for tensors (name, safetensors dtype, shape): one file, or several of about ``SHARD`` bytes."""
    shards: list[list[TensorInfo]] = [[]]
    room = SHARD
    for name, dtype, shape in tensors:
        size = math.prod(shape) * element_bytes(dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD
        room -= size
        shards[-1].append(TensorInfo(name, dtype, shape, "", 0, size))
    if len(shards) == 1:
        return [replace(info, file=WEIGHTS) for info in shards[0]]
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    return [replace(info, file=name) for name, shard in zip(names, shards, strict=True) for info in shard]


class CheckpointWriter:
    """A writer of weight files whose tensors' shapes are known: header first, then one tensor at a time, in any order.

    The folder is built under a temporary name and appears whole at ``close``. As a context manager, the writer deletes
    what it wrote when an error occurs. The other files of the model ``source`` are copied, except code; keys of
    ``config`` replace those of its config.json.
    """

    def __init__(
        self,
        folder: Path,
        layout: list[TensorInfo],
        source: Path | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.partial = beside(self.folder)
        self.layout = layout
        self.missing = {info.name: info for info in layout}
        self.slices: dict[str, set[int]] = {}
        self.places: dict[str, int] = {}
        self.open: dict[str, BinaryIO] = {}
        self.left_out: list[str] = []
        try:
            self._begin(source, config)
        except BaseException:
            self.abort()  # the `with` that would do this has not begun
            raise

    def _begin(self, source: Path | None, config: Mapping[str, Any] | None) -> None:
        """Copy the other files of the model ``source``, and begin the weight files."""
        self.left_out += left_out(source) if source else []
        for path in companions(source) if source else []:
            self.left_out += copy_companion(path, self.partial / path.name)
        if config:
            path = self.partial / "config.json"
            path.write_text(json.dumps({**bounded.read_object(path), **config}, indent=2))
        for file in dict.fromkeys(info.file for info in self.layout):
            self._start(file, [info for info in self.layout if info.file == file])

    def write(self, name: str, tensor: torch.Tensor, index: int | None = None) -> None:
        """Write one tensor, or its slice ``index``, at its position in the file.

        Raises ModelError for another shape or dtype than the layout's, and for what was written before.
        """
        info = self._expected(name)
        shape = info.shape if index is None else info.shape[1:]
        if shape != tuple(tensor.shape) or torch_dtype(info.dtype) != tensor.dtype:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ModelError(f"{self.folder}: {name} is {found} where the layout says {info.dtype} {shape}")
        done = self.slices.setdefault(name, set())
        if index in done:
            raise ModelError(f"{self.folder}: slice {index} of {name} was written before")
        self._put(info, (index or 0) * tensor.nbytes, tensor.detach().contiguous().reshape(-1))
        if index is not None:
            done.add(index)
        if index is None or len(done) == info.shape[0]:
            del self.missing[name]

    def write_piece(self, name: str, start: int, piece: torch.Tensor) -> None:
        """Write a tensor's entries, flat, from entry ``start`` on; with its last entry the tensor counts as written."""
        info = self._expected(name)
        if torch_dtype(info.dtype) != piece.dtype or start + piece.numel() > info.numel:
            raise ModelError(f"{self.folder}: {name} has {info.numel} entries of {info.dtype}, not {piece.dtype}")
        self._put(info, start * element_bytes(info.dtype), piece)
        if start + piece.numel() == info.numel:
            del self.missing[name]

    def copy(self, name: str, source: Checkpoint) -> None:
        """Copy the tensor that another checkpoint's files hold under this name, in pieces."""
        start = 0
        for piece in pieces_of(source.folder, source.stored[name]):
            self.write_piece(name, start, piece)
            start += piece.numel()
        if not start:
            self.write(name, source.load(name))

    def _expected(self, name: str) -> TensorInfo:
        info = self.missing.get(name)
        if info is None:
            raise ModelError(f"{self.folder}: {name} is not in the layout, or was written before")
        return info

    def _put(self, info: TensorInfo, start: int, flat: torch.Tensor) -> None:
        import torch

        if flat.numel():
            file = self.open[info.file]
            file.seek(self.places[info.name] + start)
            file.write(flat.view(torch.uint8).numpy().data)

    def close(self, extra: dict[str, Any] | None = None) -> Path:
        """Finish the folder and give it its name; ``extra`` becomes its ``sparsebench.json``.

        Raises ModelError where a tensor of the layout was never written.
        """
        if self.missing:
            first = next(iter(self.missing))
            raise ModelError(f"{self.folder}: {len(self.missing)} tensors were never written, the first is {first}")
        self._close_files()
        if {info.file for info in self.layout} - {WEIGHTS}:
            total = sum(info.numel * element_bytes(info.dtype) for info in self.layout)
            weight_map = {info.name: info.file for info in self.layout}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.partial / INDEX).write_text(json.dumps(index))
        if extra is not None:
            (self.partial / NOTES).write_text(json.dumps(extra, indent=1))
        note_left_out(self.partial, self.left_out)
        return appear(self.partial, self.folder)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind:
            self.abort()

    def abort(self) -> None:
        """Delete what was written."""
        self._close_files()
        shutil.rmtree(self.partial, ignore_errors=True)

    def _close_files(self) -> None:
        for file in self.open.values():
            file.close()
        self.open = {}

    def _start(self, name: str, infos: list[TensorInfo]) -> None:
        """Begin one file: write its header, and note the offset of each tensor."""
        header, places = header_bytes(infos, {"format": "pt"})
        self.places |= places
        self.open[name] = (self.partial / name).open("wb")
        self.open[name].write(header)


def header_bytes(infos: list[TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return what a safetensors file of these tensors, in this order, begins with, and each tensor's offset in it."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for info in infos:
        size = info.numel * element_bytes(info.dtype)
        header[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {
        info.name: start + header[info.name]["data_offsets"][0] for info in infos
    }


def element_bytes(dtype: str) -> int:
    """Return the bytes of one element of a safetensors dtype. Raises ModelError for one that is not handled."""
    if dtype not in ITEM_SIZE:
        raise ModelError(f"dtype {dtype} is not handled", _CONVERT)
    return ITEM_SIZE[dtype]


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype name. Raises ModelError for one that is not handled."""
    found = _dtypes().get(name)
    if found is None:
        raise ModelError(f"dtype {name} is not handled", _CONVERT)
    return found


def safetensors_dtype(dtype: torch.dtype, name: str) -> str:
    """Return the safetensors name of ``dtype``, the dtype of tensor ``name``. Raises ModelError for one not handled."""
    for code, found in _dtypes().items():
        if found == dtype:
            return code
    raise ModelError(f"{name}: {dtype} is not handled", _CONVERT)


def _dtypes() -> dict[str, torch.dtype]:
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool,
    }  # fmt: skip
