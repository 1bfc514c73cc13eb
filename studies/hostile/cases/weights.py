"""Weight files and configurations that lie: about lengths, offsets, shapes, counts and depths."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from studies.hostile import benign
from studies.hostile.harmless import HALF, calibrate, text
from studies.hostile.registry import case
from studies.hostile.sandbox import Box, Step

_NORM = "model.norm.weight"
_HEADER = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
_NESTED = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def _entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [8], "data_offsets": [0, 32], **changes}


_FILES = {
    "empty": b"",
    "7 bytes": b"1234567",
    "a header of 2**63 bytes": benign.container(_HEADER, length=2**63),
    "a header of 2**64 - 1 bytes": benign.container(_HEADER, length=2**64 - 1),
    "a header of no length": benign.container(b""),
    "not UTF-8": benign.container(b'{"\xff\xfe": 1}'),
    "nested 100,000 deep": benign.container(_NESTED),
    "a list": benign.container(b"[1, 2]"),
    "a number": benign.container(b"7"),
    "a name twice": benign.container(
        b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"x":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}', b"1234"
    ),
    "an entry that is a text": benign.container(b'{"x": "y"}'),
    "an entry that is null": benign.container(b'{"x": null}'),
    "no entry": benign.container(b"{}"),
    "NaN and Infinity": benign.container(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,Infinity]}}', b"1234"),
    "a number of 5,000 digits": benign.container(
        b'{"x":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"1"
    ),
}  # fmt: skip


@case("safetensors", _FILES)
def safetensors(box: Box, content: bytes) -> Iterator[Step]:
    model = box.model()
    (model / "model.safetensors").write_bytes(content)
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")


_ENTRIES = {
    "negative offsets": _entry(data_offsets=[-1000, 32]),
    "offsets the wrong way": _entry(data_offsets=[32, 0]),
    "overlapping offsets": _entry(data_offsets=[16, 48]),
    "one offset": _entry(data_offsets=[0]),
    "offsets of text": _entry(data_offsets=["0", "32"]),
    "fractional offsets": _entry(data_offsets=[0.5, 31.5]),
    "a shape of 2**62": _entry(shape=[2**62]),
    "a shape beyond its bytes": _entry(shape=[1 << 20, 1 << 20]),
    "a shape times zero": _entry(shape=[2**40, 0], data_offsets=[0, 0]),
    "a negative shape": _entry(shape=[-8]),
    "two negative sizes": _entry(shape=[-2, -4]),
    "a million dimensions": _entry(shape=[1] * 1_000_000),
    "a shape of text": _entry(shape="8"),
    "a fractional shape": _entry(shape=[8.0]),
    "a shape of null": _entry(shape=None),
    "an unknown dtype": _entry(dtype="Q4_K"),
    "a dtype that is a list": _entry(dtype=["F32"]),
    "a name with an escape": "\x1b[2J\x1b]0;hostile\x07",
    "a name of a megabyte": "n" * 1_000_000,
}


@case("a tensor with", _ENTRIES)
def tensor(box: Box, entry: dict[str, Any] | str) -> Iterator[Step]:
    model = box.model()
    shapes = benign.llama_shapes()
    changes = {entry: _entry()} if isinstance(entry, str) else {_NORM: entry}
    (model / "model.safetensors").write_bytes(benign.safetensors(shapes, **changes))
    yield box.do("inspect", model, "--tensors")
    yield box.do("pack", model, "--out", box.out / "packed")
    yield box.do("apply", model, HALF, "--out", box.out / "pruned")


@case("a header of 100,000 tensors")
def many_tensors(box: Box) -> Iterator[Step]:
    model = box.model()
    header = {f"t{place}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for place in range(100_000)}
    (model / "model.safetensors").write_bytes(benign.container(json.dumps(header).encode()))
    yield box.do("inspect", model)


@case("a sparse file of a terabyte", {"of zeros": 1 << 40, "with a header of as much": 0})
def sparse_file(box: Box, size: int) -> Iterator[Step]:
    model = box.model()
    with (model / "model.safetensors").open("wb") as file:
        if size:
            entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
            file.write(benign.container(json.dumps({"model.embed_tokens.weight": entry}).encode()))
            file.truncate(file.tell() + size)
        else:
            file.write(struct.pack("<Q", 1 << 40))
            file.truncate(8 + (1 << 40))
    yield box.do("inspect", model)


_CONFIGS: dict[str, Any] = {
    "nested 100,000 deep": _NESTED,
    "a list": b"[]",
    "not UTF-8": b"\xff\xfe{}",
    "empty": b"",
    "a number of 5,000 digits": b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}",
    "30 MB": b'{"model_type": "llama", "x": [' + b"0," * 15_000_000 + b"0]}",
    "a NUL byte": b'{"model_type": "llama\0"}',
    "a type that is a list": {"model_type": ["llama"]},
    "a type that is a path": {"model_type": "../../outside"},
    "a type with an escape": {"model_type": "\x1b[2J\x1b]0;hostile\x07"},
    "architectures of numbers": {"architectures": [1, None, {}]},
    "architectures of text": {"architectures": "LlamaForCausalLM"},
}


@case("config.json", _CONFIGS)
def config(box: Box, content: bytes | dict[str, Any]) -> Iterator[Step]:
    model = box.model(**content) if isinstance(content, dict) else box.model()
    if isinstance(content, bytes):
        (model / "config.json").write_bytes(content)
    yield box.do("inspect", model)
    yield box.do("apply", model, HALF, "--out", box.out / "pruned")


_SIZES: dict[str, dict[str, Any]] = {
    "no layers": {"num_hidden_layers": 0},
    "a billion layers": {"num_hidden_layers": 10**9},
    "negative layers": {"num_hidden_layers": -1},
    "layers of text": {"num_hidden_layers": "1"},
    "no heads": {"num_attention_heads": 0},
    "a hidden size of 2**40": {"hidden_size": 2**40},
    "a negative hidden size": {"hidden_size": -8},
    "a vocabulary of 2**40": {"vocab_size": 2**40},
    "a vocabulary of text": {"vocab_size": "32"},
    "positions of 2**40": {"max_position_embeddings": 2**40},
    "an infinite norm": {"rms_norm_eps": 1e999, "rope_theta": -1},
}


@case("a model of", _SIZES)
def dimensions(box: Box, changes: dict[str, Any]) -> Iterator[Step]:
    yield calibrate(box, box.model(**changes), text(box.input / "text.jsonl"))


@case("random weights of", {name: _SIZES[name] for name in ("a billion layers", "a hidden size of 2**40", "no heads")})
def random_weights(box: Box, changes: dict[str, Any]) -> Iterator[Step]:
    architecture = json.dumps({**benign.LLAMA, **changes})
    path = box.input / "random.yaml"
    path.write_text(
        "version: 1\nmodels:\n  - {name: big, source: random, family: decoder, architecture: " + architecture + "}\n"
        "storage: {formats: [dense]}\n"
    )
    yield box.do("plan", path, "--ledger", box.out / "ledger.duckdb")


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


_GGUF = b"GGUF" + struct.pack("<I", 3)
_GGUFS = {
    "2**63 tensors": _GGUF + struct.pack("<QQ", 2**63, 0),
    "2**63 values": _GGUF + struct.pack("<QQ", 0, 2**63),
    "a text of 2**60 bytes": _GGUF + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**60) + b"x",
    "a list of 2**60": _GGUF + struct.pack("<QQ", 0, 1) + _text("general.architecture") + struct.pack("<IIQ", 9, 8, 2**60),
    "lists nested deep": _GGUF + struct.pack("<QQ", 0, 1) + _text("x") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50_000,
    "an unknown version": b"GGUF" + struct.pack("<IQQ", 2**31, 0, 0),
    "nothing more": b"GGUF",
    "2**40 dimensions": _GGUF + struct.pack("<QQ", 1, 0) + _text("x") + struct.pack("<I", 2**31),
    "a shape of 2**60": _GGUF + struct.pack("<QQ", 1, 0) + _text("x") + struct.pack("<IQQIQ", 2, 2**60, 2**60, 0, 0),
    "an escape in its architecture": (
        _GGUF + struct.pack("<QQ", 0, 1) + _text("general.architecture") + struct.pack("<I", 8) + _text("\x1b[2J")
    ),
}  # fmt: skip


@case("GGUF with", _GGUFS)
def gguf(box: Box, content: bytes) -> Iterator[Step]:
    (box.input / "model.gguf").write_bytes(content)
    yield box.do("inspect", box.input / "model.gguf", like="calibrate")


def stored(form: str, source: bytes, tensors: dict[str, Any], parts: dict[str, Any], data: bytes) -> bytes:
    """A packed or archived weight file that says all this of itself, with right checksums of its header."""
    metadata = {
        "format": f"sparsebench.{form}", "version": "1", "source": source.decode(),
        "source_crc32": f"{zlib.crc32(source):08x}", "tensors": json.dumps(tensors),
    }  # fmt: skip
    return benign.container(json.dumps({"__metadata__": metadata, **parts}).encode(), data)


def _stored(
    shape: list[int], encoding: str, names: list[str], form: str = "packed", piece: bytes = b"12345678"
) -> bytes:
    size = 4
    for count in shape:
        size *= count
    source = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    parts, data = {}, b""
    for name in names:
        parts[f"x#{name}"] = {"dtype": "U8", "shape": [len(piece)], "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    return stored(form, source, {"x": {"encoding": encoding, "crc32": "00000000"}}, parts, data)


def _zeros(size: int) -> bytes:
    import zstandard

    packer = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    block = bytes(1 << 24)
    return b"".join(packer.compress(block) for _ in range(size >> 24)) + packer.flush()


_STORED = {
    "packed, a terabyte as a bitmask": ("packed", lambda: _stored([1 << 38], "bitmask", ["bitmask", "values"])),
    "packed, a terabyte as gaps": ("packed", lambda: _stored([1 << 38], "gaps8", ["gaps8", "values"])),
    "packed, a terabyte raw": ("packed", lambda: _stored([1 << 38], "raw", ["raw"])),
    "packed, 3 GB as gaps": ("packed", lambda: _stored([3 << 28], "gaps8", ["gaps8", "values"])),
    "archive, a terabyte": ("archive", lambda: _stored([1 << 38], "planes", [f"plane{n}" for n in range(4)], "archive")),
    "archive, planes of 4 GB of zeros": (
        "archive", lambda: _stored([1 << 30], "planes", [f"plane{n}" for n in range(4)], "archive", _zeros(1 << 30)),
    ),
    "packed, a negative shape": ("packed", lambda: _stored([-1, -8], "raw", ["raw"])),
    "packed, an empty tensor": ("packed", lambda: _stored([0], "bitmask", ["bitmask", "values"])),
    "packed, an encoding of text": ("packed", lambda: _stored([2], "../x", ["raw"])),
}  # fmt: skip


@case("a stored model", _STORED)
def stored_model(box: Box, how: tuple[str, Any]) -> Iterator[Step]:
    form, make = how
    model = box.model()
    (model / "model.safetensors").unlink()
    (model / f"model.safetensors.{form}").write_bytes(make())
    yield box.do("unpack", model, "--out", box.out / "unpacked")
    if form == "packed":
        yield box.do("inspect", model)


@case("a stored model whose source offsets", {"are negative": -4096, "are terabytes away": 1 << 41})
def stored_offsets(box: Box, begin: int) -> Iterator[Step]:
    model = box.model()
    (model / "model.safetensors").unlink()
    source = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [begin, begin + 8]}}).encode()
    data = b"12345678"
    kept = {"x": {"encoding": "raw", "crc32": f"{zlib.crc32(data):08x}"}}
    parts = {"x#raw": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    (model / "model.safetensors.packed").write_bytes(stored("packed", source, kept, parts, data))
    yield box.do("unpack", model, "--out", box.out / "unpacked")
