"""The packed format, the smallest of three: raw, or the nonzero values with a bitmask or with their gaps.

Part 1 of docs/format.md. An element is zero when all of its bits are zero: -0.0 is a value like any other. So every
encoding restores the same bits. The least possible cost is one read of the dense bytes and one write of the packed
ones.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsebench import bounded
from sparsebench.errors import ModelError, StorageError
from sparsebench.models.files.checkpoint import TensorInfo, torch_dtype
from sparsebench.paths import check_contained
from sparsebench.storage import compiled, folders
from sparsebench.storage.coding import CODE_BITS, Coding, ReadOther, Section, encodings, item_size, layout_of, quantized
from sparsebench.storage.container import StoredFile, StoredTensor, is_believable, read
from sparsebench.storage.words import ESCAPE, WORD_TYPES, Bytes, Scratch, Words

if TYPE_CHECKING:
    import torch

ENCODINGS = ("raw", "bitmask", *ESCAPE)


@dataclass(frozen=True)
class Encoded:
    """A packed tensor: ``index`` locates the nonzero elements, ``values`` are these in order, in pieces.

    For raw, ``index`` is empty, and ``values`` are the tensor's bytes.
    """

    encoding: str
    index: Bytes
    values: tuple[Words, ...]


def encode(bits: Bytes, item_bytes: int, scratch: Scratch | None = None) -> Encoded:
    """Encode a tensor, given as its bytes with ``item_bytes`` bytes per element, in the smallest encoding.

    Of equal sizes the simpler encoding is taken: raw, then bitmask, then gaps. With ``scratch`` the result is in that
    memory.
    """
    smaller = (
        without_zeros(bits.view(WORD_TYPES[item_bytes]), item_bytes * 8, scratch or Scratch())
        if item_bytes in WORD_TYPES
        else None
    )
    return smaller or Encoded("raw", np.empty(0, np.uint8), (bits,))


def without_zeros(words: Words, width: int, scratch: Scratch) -> Encoded | None:
    """Return the smallest encoding without the zeros, for values of ``width`` bits; None where raw is no larger."""
    scan = compiled.packing_kernels().scan(words, scratch)
    n, count = words.size, scan.count
    dense_bytes, value_bytes = (n * width + 7) // 8, (count * width + 7) // 8
    most_index_bytes = dense_bytes - value_bytes
    if min((n + 7) // 8, (count + 1) // 2) >= most_index_bytes:
        return None
    mask, values = scan.split()
    choice = "bitmask"
    if count * 4 < n:  # a gap takes at least half a byte, the bitmask n / 8 bytes
        sizes = scan.gap_bytes
        smaller = min(ESCAPE, key=sizes.__getitem__)
        # Gaps of a large tensor without any value would be so short that a reader takes the file for forged.
        stored_bytes = sizes[smaller] + value_bytes
        if sizes[smaller] < mask.size and is_believable(stored_bytes, dense_bytes, bounded.TENSOR_BYTES):
            choice = smaller
    index = mask if choice == "bitmask" else scan.gaps(choice)
    return Encoded(choice, index, values) if index.size < most_index_bytes else None


def decode(
    encoding: str, index: Bytes, values: Bytes, size: int, item_bytes: int, scratch: Scratch | None = None
) -> Bytes:
    """Decode a tensor of ``size`` bytes from its ``index`` and ``values``; with ``scratch`` it may be in that memory.

    Raises StorageError (without the tensor's name) when index, values and size do not belong together.
    """
    if encoding == "raw":
        if values.size != size or index.size:
            raise StorageError(f"{values.size} bytes where {size} are expected")
        return values
    if encoding not in ENCODINGS or item_bytes not in WORD_TYPES or values.size % item_bytes:
        raise StorageError(f"encoding {encoding!r} with elements of {item_bytes} bytes is unknown")
    n, elements = size // item_bytes, values.view(WORD_TYPES[item_bytes])
    if encoding == "bitmask" and index.size != (n + 7) // 8:
        raise StorageError(f"a bitmask of {index.size} bytes for {n} elements")
    words, done = compiled.packing_kernels().place(encoding, index, elements, n, scratch or Scratch())
    if done != elements.size:
        raise StorageError(f"{elements.size} values where its index places {done}")
    return words.view(np.uint8)


def _parts(encoding: str, item_bytes: int) -> tuple[str, ...]:
    return ("", "raw") if encoding == "raw" else (encoding.rpartition("-")[2], "values")


def _encode_tensor(
    bits: Bytes, info: TensorInfo, read_other: ReadOther, scratch: Scratch
) -> tuple[str, tuple[Section, ...]]:
    layout = quantized(info, read_other)
    codes = without_zeros(layout.split(bits, scratch), layout.bits, scratch) if layout else None
    if layout and codes:
        values = layout.packed(np.concatenate(codes.values))
        parts = [Section("U8", (part.size,), (part,)) for part in (codes.index, values)]
        return f"int{layout.bits}-{codes.encoding}", tuple(parts)
    encoded = encode(bits, item_size(info), scratch)
    if encoded.encoding == "raw":
        return "raw", (Section(info.dtype, info.shape, (bits,)),)
    count = sum(piece.size for piece in encoded.values)
    index = Section("U8", (encoded.index.size,), (encoded.index,))
    return encoded.encoding, (index, Section(info.dtype, (count,), encoded.values))


def _decode_tensor(encoding: str, parts: Sequence[Bytes], info: TensorInfo, scratch: Scratch) -> Bytes:
    index, values = parts
    code, _, kind = encoding.rpartition("-")
    if not code:
        return decode(kind, index, values, info.nbytes, item_size(info), scratch)
    layout = layout_of(info, CODE_BITS[code])
    return layout.join(decode(kind, index, layout.unpacked(values), layout.rows * layout.columns, 1, scratch))


CODING = Coding(
    name="packed",
    version=1,
    encodings=lambda info: (*ENCODINGS, *encodings(info, ENCODINGS[1:])),
    parts=_parts,
    encode=_encode_tensor,
    decode=_decode_tensor,
)


def pack(folder: Path, out: Path) -> None:
    """Store a Hugging Face folder in the packed format (see folders.store)."""
    folders.store(folder, out, CODING)


def is_packed(folder: Path) -> bool:
    """Return whether a folder holds packed weight files."""
    return folders.holds(folder, CODING)


class PackedCheckpoint:
    """The counterpart of ``Checkpoint`` for a folder that ``sparsebench pack`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._decoded: tuple[str, torch.Tensor] | None = None
        self._pages: dict[Path, Bytes] = {}
        check_contained(self.folder)
        if not is_packed(self.folder) or not (self.folder / "config.json").is_file():
            raise ModelError(f"{self.folder}: no packed model", "name a folder made by `sparsebench pack`")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json, unchanged."""
        return bounded.read_object(self.folder / "config.json")

    @cached_property
    def entries(self) -> dict[str, tuple[StoredFile, StoredTensor]]:
        """The file and entry of every tensor, by name.

        Raises StorageError where a file is damaged or missing, or two hold one tensor.
        """
        entries: dict[str, tuple[StoredFile, StoredTensor]] = {}
        for file in (read(path, CODING) for path in folders.stored_files(self.folder, CODING)):
            for entry in file.entries:
                name = entry.info.name
                if name in entries:
                    problem = f"{self.folder}: {name} is in {entries[name][0].path.name} and in {file.path.name}"
                    raise StorageError(problem, CODING.again)
                entries[name] = (file, entry)
        return entries

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, with the shape and dtype of its dense form."""
        return {name: entry.info for name, (_, entry) in self.entries.items()}

    def load(self, name: str, expert: int | None = None) -> torch.Tensor:
        """Load one dense tensor, or its slice ``expert``, checked against the tensor's checksum."""
        if expert is not None:
            # A tensor is decoded whole, and kept until slices of another one are loaded.
            if self._decoded is None or self._decoded[0] != name:
                self._decoded = None
                self._decoded = (name, self.load(name))
            return self._decoded[1][expert]
        file, entry = self.entries[name]
        return _as_tensor(file.load(entry), entry.info.dtype).reshape(entry.info.shape)

    def mask_and_values(self, name: str) -> tuple[Bytes, Bytes] | None:
        """Return the mask and the values of a tensor as pages of its file; None where it is no bitmask.

        No checksum covers this form. Raises StorageError where the file is too short.
        """
        file, entry = self.entries[name]
        if not entry.encoding.endswith("bitmask"):
            return None
        if file.path not in self._pages:
            with file.path.open("rb") as opened:
                # A private, writable mapping because torch has no read-only tensors.
                self._pages[file.path] = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
        pages = self._pages[file.path]
        for _, end in entry.parts:
            if end > pages.size:
                problem = f"{file.path}: {name}: ends at byte {pages.size} where {end} are expected"
                raise StorageError(problem, CODING.again)
        index, values = (pages[begin:end] for begin, end in entry.parts)
        return index, values


def _as_tensor(bits: Bytes, dtype: str) -> torch.Tensor:
    import torch

    # torch gives an empty numpy array a stride of 0, and then refuses to view it as another dtype.
    flat = torch.from_numpy(bits) if bits.size else torch.empty(0, dtype=torch.uint8)
    return flat.view(torch_dtype(dtype))
