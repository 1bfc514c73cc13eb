"""Every encoding against a slow reader and writer made from the specification, bit for bit."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import StorageError
from sparsebench.storage import encodings
from sparsebench.storage.encodings import ESCAPE, decode, encode
from tests.storage import packed_reference as reference

ITEMS = [1, 2, 4, 8]


@st.composite
def tensors(draw: st.DrawFn) -> tuple[bytes, int]:
    """Bytes of a tensor at any density, with long runs of zeros, and its element size."""
    item = draw(st.sampled_from(ITEMS))
    element = st.binary(min_size=item, max_size=item)
    # -0.0 and a NaN with a payload, as float32; cut for other sizes.
    special = st.sampled_from([b"\0\0\0\x80", b"\x01\0\xc0\x7f"]).map(lambda bits: (bits * 2)[-item:])
    zeros = st.sampled_from([1, 2, 14, 15, 16, 29, 30, 31, 254, 255, 256, 511, 600]).map(
        lambda count: bytes(item * count)
    )
    return b"".join(draw(st.lists(st.one_of(element, special, zeros), max_size=60))), item


def _joined(encoded: encodings.Encoded) -> bytes:
    return b"".join(piece.tobytes() for piece in encoded.values)


@settings(max_examples=400, deadline=None)
@given(tensors(), st.sampled_from([8, 64, encodings.BLOCK]))
def test_matches_the_specification(tensor: tuple[bytes, int], block: int) -> None:
    data, item = tensor
    bits = np.frombuffer(data, np.uint8)
    with mock.patch.object(encodings, "BLOCK", block):
        encoded = encode(bits, item)
        assert (encoded.encoding, encoded.index.tobytes(), _joined(encoded)) == reference.encode(data, item)
        values = np.frombuffer(_joined(encoded), np.uint8)
        assert encoded.value_bytes == values.size
        assert decode(encoded.encoding, encoded.index, values, len(data), item).tobytes() == data
    assert reference.decode(encoded.encoding, encoded.index.tobytes(), values.tobytes(), len(data), item) == data


@settings(max_examples=200, deadline=None)
@given(tensors(), st.sampled_from(["bitmask", *ESCAPE]), st.sampled_from([8, encodings.BLOCK]))
def test_reads_every_encoding_even_where_another_is_smaller(
    tensor: tuple[bytes, int], encoding: str, block: int
) -> None:
    data, item = tensor
    elements = [data[place : place + item] for place in range(0, len(data), item)]
    values = b"".join(element for element in elements if any(element))
    if encoding == "bitmask":
        index = np.packbits(np.array([any(element) for element in elements], bool), bitorder="little")
    else:
        index = np.array(reference.gap_symbols(elements, ESCAPE[encoding]), np.uint8)
        if encoding == "gaps4":
            index = np.append(index, np.full(index.size % 2, 15, np.uint8))
            index = index[::2] | index[1::2] << 4
    with mock.patch.object(encodings, "BLOCK", block):
        found = decode(encoding, index, np.frombuffer(values, np.uint8), len(data), item)
    assert found.tobytes() == data


def test_the_example_of_the_specification() -> None:
    data = bytes.fromhex("00000000803f000000c0")
    values = np.frombuffer(bytes.fromhex("803f00c0"), np.uint8)
    encoded = encode(np.frombuffer(data, np.uint8), 2)
    assert (encoded.encoding, encoded.index.tobytes().hex(), _joined(encoded)) == ("bitmask", "14", values.tobytes())
    for encoding, index in (("bitmask", "14"), ("gaps8", "0201"), ("gaps4", "12")):
        found = decode(encoding, np.frombuffer(bytes.fromhex(index), np.uint8), values, 10, 2)
        assert found.tobytes() == data


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (0.0, "raw"),
        (0.5, "bitmask"),
        (0.75, "bitmask"),
        (0.9, "gaps4"),
        (0.95, "gaps4"),
        (0.99, "gaps8"),
        (1.0, "gaps8"),
    ],
)
def test_large_random_tensors(item: int, sparsity: float, expected: str) -> None:
    n = 3 * encodings.BLOCK + 5
    random = np.random.default_rng(0)
    words = random.integers(1, 200, n).astype(encodings.WORDS[item])
    words[random.random(n) < sparsity] = 0
    encoded = encode(words.view(np.uint8), item)
    assert encoded.encoding == expected
    values = np.frombuffer(_joined(encoded), np.uint8)
    assert np.array_equal(decode(expected, encoded.index, values, words.nbytes, item), words.view(np.uint8))


def test_negative_zero_and_nan_payloads_are_values() -> None:
    words = np.zeros(4096, np.uint32)
    words[7], words[4000] = 0x80000000, 0x7FC01234
    encoded = encode(words.view(np.uint8), 4)
    assert encoded.value_bytes == 8
    assert encoded.encoding == "gaps8"


@pytest.mark.parametrize("item", [0, 3, 16])
def test_other_element_sizes_stay_raw(item: int) -> None:
    assert encode(np.zeros(48, np.uint8), item).encoding == "raw"


@pytest.mark.parametrize(
    ("encoding", "index", "values", "size"),
    [
        ("raw", [], [1, 2], 4),  # too short
        ("raw", [1], [1, 2, 3, 4], 4),  # an index where there is none
        ("bitmask", [1, 0], [1, 2], 16),  # too long an index
        ("bitmask", [3], [1, 2], 16),  # fewer values than places
        ("bitmask", [1], [1, 2, 3, 4], 16),  # more values than places
        ("gaps8", [8], [1, 2], 16),  # a place outside
        ("gaps8", [255, 0], [1, 2], 16),
        ("gaps4", [0x08], [1, 2, 3, 4], 16),
        ("gaps8", [0], [1], 16),  # half a value
        ("zstd", [0], [1, 2], 16),
    ],
)
def test_parts_that_do_not_belong_together(encoding: str, index: list[int], values: list[int], size: int) -> None:
    with pytest.raises(StorageError):
        decode(encoding, np.array(index, np.uint8), np.array(values, np.uint8), size, 2)
