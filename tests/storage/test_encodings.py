"""Every encoding against a slow reader and writer made from the specification, bit for bit."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import StorageError
from sparsebench.storage import packed, words
from sparsebench.storage.packed import ESCAPE, decode, encode
from tests.storage import packed_reference as reference
from tests.storage.every_kernel import CODERS, using

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


def _joined(encoded: packed.Encoded) -> bytes:
    return b"".join(piece.tobytes() for piece in encoded.values)


@pytest.mark.parametrize("by", CODERS)
@settings(max_examples=200, deadline=None)
@given(tensor=tensors(), encoding=st.sampled_from(["bitmask", *ESCAPE]), block=st.sampled_from([8, words.BLOCK]))
def test_reads_every_encoding_small_or_not(by: str, tensor: tuple[bytes, int], encoding: str, block: int) -> None:
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
    with mock.patch.object(words, "BLOCK", block), using(by):
        found = decode(encoding, index, np.frombuffer(values, np.uint8), len(data), item)
    assert found.tobytes() == data


@pytest.mark.parametrize("by", CODERS)
@pytest.mark.parametrize("item", ITEMS)
def test_runs_longer_than_a_block(by: str, item: int) -> None:
    """Values far apart, the first and the last element among them; a zero after many values without one; at random."""
    n = 3 * words.BLOCK + 71
    far = np.zeros(n, words.WORD_TYPES[item])
    far[[0, 1, 300, words.BLOCK + 300, n - 1]] = [1, 2, 3, 4, 5]
    late = np.full(n, 7, words.WORD_TYPES[item])
    late[[n - 80, n - 1]] = 0
    random = np.random.default_rng(0)
    drawn = random.integers(1, 200, n).astype(words.WORD_TYPES[item])
    half, tenth = (np.where(random.random(n) < share, drawn, 0).astype(drawn.dtype) for share in (0.5, 0.1))
    for elements in (far, late, half, tenth):
        bits = elements.view(np.uint8)
        with using(by):
            encoded = encode(bits, item)
            values = np.frombuffer(_joined(encoded), np.uint8)
            if encoded.encoding != "raw":
                assert np.array_equal(decode(encoded.encoding, encoded.index, values, bits.size, item), bits)
        with using("numpy"):
            slow = encode(bits, item)
        assert (slow.encoding, slow.index.tobytes()) == (encoded.encoding, encoded.index.tobytes())
        assert _joined(slow) == values.tobytes()


@pytest.mark.parametrize("by", CODERS)
def test_negative_zero_and_nan_payloads_are_values(by: str) -> None:
    elements = np.zeros(4096, np.uint32)
    elements[7], elements[4000] = 0x80000000, 0x7FC01234
    with using(by):
        encoded = encode(elements.view(np.uint8), 4)
    assert sum(piece.nbytes for piece in encoded.values) == 8
    assert encoded.encoding == "gaps8"


@pytest.mark.parametrize("item", [0, 3, 16])
def test_other_element_sizes_stay_raw(item: int) -> None:
    assert encode(np.zeros(48, np.uint8), item).encoding == "raw"


@pytest.mark.parametrize("by", CODERS)
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
def test_parts_do_not_belong_together(by: str, encoding: str, index: list[int], values: list[int], size: int) -> None:
    with using(by), pytest.raises(StorageError):
        decode(encoding, np.array(index, np.uint8), np.array(values, np.uint8), size, 2)


@pytest.mark.parametrize("by", CODERS[1:])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_index_never_writes_outside(by: str, data: st.DataObject) -> None:
    """Any index and any values: an error, or what the specification's reader gives. All agree with numpy."""
    item = data.draw(st.sampled_from(ITEMS))
    encoding = data.draw(st.sampled_from(["bitmask", *ESCAPE]))
    n = data.draw(st.integers(0, 400))
    some = st.integers(0, (n + 7) // 8 + 1) if encoding != "bitmask" else st.just((n + 7) // 8)
    size = data.draw(some)
    byte = st.sampled_from([0, 0, 1, 15, 240, 255]) | st.integers(0, 255)
    index = np.array(data.draw(st.lists(byte, min_size=size, max_size=size)), np.uint8)
    values = np.full(data.draw(st.integers(0, n + 2)) * item, 9, np.uint8)
    with using("numpy"):
        expected = _decoded_or_error(encoding, index, values, n, item)
    with using(by):
        assert _decoded_or_error(encoding, index, values, n, item) == expected


def _decoded_or_error(encoding: str, index: np.ndarray, values: np.ndarray, n: int, item: int) -> bytes | str:
    try:
        return decode(encoding, index, values, n * item, item).tobytes()
    except StorageError as error:
        return error.message
