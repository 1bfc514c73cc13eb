"""The archive format (part 2 of docs/format.md): an index where there are zeros, values in byte planes, all compressed.

In a trained weight only the exponent and the first bits of the mantissa are predictable, and no sequence of weights
repeats: Huffman coding of the right bits helps, a search for repetitions does not. So words are rotated until the five
lowest bits of the exponent and three of the mantissa make one byte (the upper bits of the exponent hardly vary), and
zstd is told not to search. studies/archive_layouts.py compares them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsebench.errors import StorageError
from sparsebench.models.files.checkpoint import TensorInfo
from sparsebench.storage import compiled
from sparsebench.storage.coding import (
    CODE_BITS,
    CodeLayout,
    Coding,
    ReadOther,
    Section,
    encodings,
    item_size,
    layout_of,
    quantized,
)
from sparsebench.storage.compiled import Scan
from sparsebench.storage.words import WORD_TYPES, Bytes, Scratch, Words, halves

ROTATED_BITS = {"BF16": 4, "F32": 4, "F16": 1, "F64": 7}
"""By how many bits the words of a dtype are rotated to the left; those of other dtypes are not rotated."""
SEARCH_LEVEL = 3
"""The zstd level with a search for repetitions, for the index, quantized codes and tensors that are not floats."""
_KINDS = ("planes", "bitmask", "gaps8")


def _parts(encoding: str, item_bytes: int) -> tuple[str, ...]:
    code, _, kind = encoding.rpartition("-")
    planes = item_bytes if item_bytes in WORD_TYPES and not code else 1
    return ("" if kind == "planes" else kind, *(f"plane{number}" for number in range(planes)))


def _encode_tensor(
    bits: Bytes, info: TensorInfo, read_other: ReadOther, scratch: Scratch
) -> tuple[str, tuple[Section, ...]]:
    if layout := quantized(info, read_other):
        return _encode_codes(layout, bits, scratch)
    item_bytes = item_size(info)
    if item_bytes not in WORD_TYPES:
        return "planes", (_section(_compressed(bits, search=True)),)
    words = bits.view(WORD_TYPES[item_bytes])
    scan = compiled.packing_kernels().scan(words, scratch)
    if scan.count == words.size:
        return "planes", _planes(words, info)
    kind, index, values = _split(scan, words.size)
    return kind, (_section(index), *_planes(values, info))


def _encode_codes(layout: CodeLayout, bits: Bytes, scratch: Scratch) -> tuple[str, tuple[Section, ...]]:
    """Encode a quantized weight in the smaller way: all codes, or an index and the codes that are not zero."""
    codes = layout.split(bits, scratch)
    scan = compiled.packing_kernels().scan(codes, scratch)
    all_codes = _compressed(layout.packed(codes), search=True)
    if scan.count < codes.size:
        kind, index, values = _split(scan, codes.size)
        plane = _compressed(layout.packed(values), search=True)
        if len(index) + len(plane) < len(all_codes):
            return f"int{layout.bits}-{kind}", (_section(index), _section(plane))
    return f"int{layout.bits}-planes", (_section(all_codes),)


def _split(scan: Scan, size: int) -> tuple[str, bytes, Words]:
    """Return the kind and bytes of the smaller index, and the values, for ``size`` elements with a zero among them."""
    mask, pieces = scan.split()
    kind, index = "bitmask", _compressed(mask, search=True)
    if scan.count * 4 < size:  # with more values the gaps are never smaller
        gaps = _compressed(scan.gaps("gaps8"), search=True)
        if len(gaps) < len(index):
            kind, index = "gaps8", gaps
    return kind, index, pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _decode_tensor(encoding: str, parts: Sequence[Bytes], info: TensorInfo, scratch: Scratch) -> Bytes:
    code, _, kind = encoding.rpartition("-")
    if code:
        return _decode_codes(kind, parts, layout_of(info, CODE_BITS[code]), scratch)
    item_bytes, count = item_size(info), info.numel
    if item_bytes not in WORD_TYPES:
        return _decompressed(parts[1], info.nbytes, info.nbytes)
    planes = [_decompressed(part, count if kind == "planes" else 0, count) for part in parts[1:]]
    if len({plane.size for plane in planes}) != 1:
        raise StorageError("its planes differ in length")
    values = compiled.packing_kernels().join_planes(planes, WORD_TYPES[item_bytes], ROTATED_BITS.get(info.dtype, 0))
    if kind == "planes":
        return values.view(np.uint8)
    return _place_values(kind, parts[0], values, count, scratch).view(np.uint8)


def _decode_codes(kind: str, parts: Sequence[Bytes], layout: CodeLayout, scratch: Scratch) -> Bytes:
    count = layout.rows * layout.columns
    size = count * layout.bits // 8
    stored = _decompressed(parts[1], size if kind == "planes" else 0, size)
    if kind == "planes":
        return layout.join(halves(stored) if layout.bits == 4 else stored.copy())
    return layout.join(_place_values(kind, parts[0], layout.unpacked(stored), count, scratch))


def _place_values(kind: str, part: Bytes, values: Words, count: int, scratch: Scratch) -> Words:
    """Return ``count`` elements from a compressed index and the values. Raises StorageError where these do not fit."""
    mask_bytes = (count + 7) // 8
    # Each symbol of the gaps stands for at least one element.
    smallest, largest = (mask_bytes, mask_bytes) if kind == "bitmask" else (0, count)
    words, placed = compiled.packing_kernels().place(
        kind, _decompressed(part, smallest, largest), values, count, scratch
    )
    if placed != values.size:
        raise StorageError(f"{values.size} values where its index places {placed}")
    return words


def _planes(words: Words, info: TensorInfo) -> tuple[Section, ...]:
    """Return the compressed byte planes of words, that of the lowest byte first."""
    rotate = ROTATED_BITS.get(info.dtype, 0)
    planes = compiled.packing_kernels().split_planes(words, rotate)
    return tuple(_section(_compressed(plane, search=info.dtype not in ROTATED_BITS)) for plane in planes)


def _section(data: bytes) -> Section:
    return Section("U8", (len(data),), (np.frombuffer(data, np.uint8),))


def _compressed(data: Bytes, search: bool) -> bytes:
    """Return one zstd frame; no bytes for no data. With ``search`` the smaller of two: with a search and without."""
    if not data.size:
        return b""
    frames = [compressor.compress(data.data) for compressor in _compressors()[: 2 if search else 1]]
    return min(frames, key=len)


def _decompressed(data: Bytes, smallest: int, largest: int) -> Bytes:
    """Return the content of a frame.

    Raises StorageError where its declared size is not from ``smallest`` to ``largest``.
    """
    import zstandard

    try:
        size = zstandard.frame_content_size(data.data) if data.size else 0
        if not smallest <= size <= largest:
            raise StorageError(f"a compressed part of {size} bytes where {smallest} to {largest} are expected")
        if not size:
            return np.empty(0, np.uint8)
        plain = zstandard.ZstdDecompressor().decompress(data.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StorageError(f"its compressed bytes are damaged ({error})") from error
    return np.frombuffer(plain, np.uint8)


@functools.cache
def _compressors() -> tuple[Any, Any]:
    """Return two compressors: Huffman coding alone (a table of 64 entries finds few matches), and with a search."""
    import zstandard as zstd

    alone = zstd.ZstdCompressionParameters(
        window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7, strategy=zstd.STRATEGY_FAST
    )
    return zstd.ZstdCompressor(compression_params=alone), zstd.ZstdCompressor(level=SEARCH_LEVEL)


CODING = Coding(
    name="archive",
    version=1,
    encodings=lambda info: (*_KINDS, *encodings(info, _KINDS)),
    parts=_parts,
    encode=_encode_tensor,
    decode=_decode_tensor,
    spare=8,
)
