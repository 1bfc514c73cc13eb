"""Weight files that lie about lengths, offsets, shapes and counts: refused by name, for little time and memory."""

import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsebench import sources
from sparsebench.errors import ModelError, SparsebenchError
from sparsebench.models.files.checkpoint import read_header
from sparsebench.models.files.safety import left_out_files
from sparsebench.models.modules.load import load_model
from sparsebench.models.prepare import prepare
from sparsebench.storage import container
from sparsebench.storage.archive import CODING as ARCHIVE
from sparsebench.storage.coding import Coding
from sparsebench.storage.packed import CODING as PACKED
from sparsebench.structure import assess
from tests.adversarial.benign import container as container_of
from tests.adversarial.watch import refused
from tests.making import make, quantize_step


def entry(**changes: Any) -> str:
    """A header of one tensor of two floats, with these changes."""
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}})


HEADERS: dict[str, str] = {
    "a length beyond the file": entry(shape=[1 << 40], data_offsets=[0, 1 << 42]),
    "a shape beyond its bytes": entry(shape=[1 << 40, 1 << 20]),
    "a shape times zero": entry(shape=[2**40, 0]),
    "a negative shape": entry(shape=[-2]),
    "two negative sizes": entry(shape=[-1, -2]),
    "a million dimensions": entry(shape=[1] * 1_000_000),
    "a fractional shape": entry(shape=[2.0]),
    "a shape that is NaN": '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,Infinity]}}',
    "a number too long": entry(shape=[10**4000] * 100),
    "negative offsets": entry(data_offsets=[-1000, 8]),
    "offsets the wrong way": entry(data_offsets=[8, 0]),
    "offsets of text": entry(data_offsets=["0", "8"]),
    "no offsets": '{"a": {"dtype": "F32", "shape": [2]}}',
    "twice the same bytes": entry()[:-1] + ", " + entry().replace('"a"', '"b"')[1:],
    "a dtype that is a list": entry(dtype=["F32"]),
    "a shape of booleans": entry(shape=[True, 2]),
    "three offsets": entry(data_offsets=[0, 4, 8]),
    "no object": '{"a": 1}',
    "a list": "[1, 2]",
    "nothing": "",
    "not UTF-8": '{"\udcff\udcfe": 1}',
    "nested deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "100 MB": '{"a": "' + "x" * 101_000_000 + '"}',
    "ten million values": "[" + "[]," * 10_000_000 + "[]]",
}


FILES = {
    **{name: container_of(text.encode(errors="surrogateescape")) + bytes(8) for name, text in HEADERS.items()},
    "an empty file": b"", "a short file": b"1234567", "a length of 2**63": container_of(b"{}", length=2**63),
    "a length of 2**64": container_of(b"{}", length=2**64 - 1),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_headers_of_weights(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[case])
    with refused(path, kind=ModelError):
        read_header(path)


def stored(path: Path, coding: Coding, parts: dict[str, int], encoding: str, **changes: Any) -> None:
    """A packed or archived file that says all this of its tensor, with right checksums of its header."""
    source = entry(**changes)
    about = {
        "format": coding.identifier, "version": str(coding.version), "source": source,
        "source_crc32": f"{zlib.crc32(source.encode()):08x}",
        "tensors": json.dumps({"a": {"encoding": encoding, "crc32": f"{zlib.crc32(bytes(8)):08x}"}}),
    }  # fmt: skip
    header: dict[str, Any] = {"__metadata__": about}
    offset = 0
    for name, size in parts.items():
        header[f"a#{name}"] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    path.write_bytes(container_of(json.dumps(header).encode()) + bytes(offset))


MANY = [{"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]} for count in (400_000_000, 1 << 50)]
STORED: list[tuple[Coding, dict[str, int], str, dict[str, Any]]] = [
    *((PACKED, {"gaps8": 0, "values": 0}, "gaps8", many) for many in MANY),
    *((ARCHIVE, {"gaps8": 0, "plane0": 0, "plane1": 0}, "gaps8", many) for many in MANY),
    *((PACKED, {"bitmask": 8, "values": 8}, "bitmask", many) for many in MANY),
    *((PACKED, {"raw": 8}, "raw", many) for many in MANY),
    (PACKED, {"raw": 8}, "raw", {"shape": [-1, -2]}),
    (PACKED, {"raw": 8}, "../x", {}),
    (PACKED, {"raw": 8}, "raw", {"data_offsets": [-4096, -4088]}),
    (PACKED, {"raw": 8}, "raw", {"data_offsets": [1 << 41, (1 << 41) + 8]}),
]


@pytest.mark.parametrize(("coding", "parts", "encoding", "changes"), STORED)
def test_stored_tensors_that_promise_what_the_file_does_not_hold(
    coding: Coding, parts: dict[str, int], encoding: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / f"model.safetensors.{coding.name}"
    stored(path, coding, parts, encoding, **changes)
    with refused(path.name, kind=SparsebenchError):
        found = container.read(path, coding)
        found.load(found.entries[0])


def gguf(keys: int = 0, tensors: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


KEY = struct.pack("<Q", 1) + b"k"
GGUFS = {
    "keys": gguf(keys=1 << 60),
    "tensors": gguf(tensors=1 << 60),
    "a long name": gguf(1, 0, struct.pack("<Q", 1 << 62)),
    "a long list": gguf(1, 0, KEY + struct.pack("<IIQ", 9, 4, 1 << 60)),
    "lists of lists": gguf(1, 0, KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000),
    "a huge shape": gguf(0, 1, KEY + struct.pack("<IQQIQ", 2, 1 << 31, 1 << 20, 0, 0)),
    "many dimensions": gguf(0, 1, KEY + struct.pack("<I", 1 << 31)),
    "no header": b"GGUF",
}


@pytest.mark.parametrize("case", GGUFS)
def test_gguf(case: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GgufConfig  # noqa: F401 - what is imported is not counted

    path = tmp_path / "m.gguf"
    path.write_bytes(GGUFS[case])
    with refused(path, kind=ModelError):
        prepare(path, tmp_path / "out", "decoder")


def test_pickled_weights_that_repeat_themselves(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_bert / "config.json").read_text())
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    with refused(path, kind=ModelError):
        prepare(tmp_path, tmp_path / "out", "encoder")
    with zipfile.ZipFile(path) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    with refused(path, "compressed", kind=ModelError):
        prepare(tmp_path, tmp_path / "out", "encoder")


TABLE = torch.zeros(8, 8)
ENTRIES: dict[str, Callable[[], Any]] = {
    "a number as its name": lambda: {1: TABLE},
    "the name of the header's own entry": lambda: {"__metadata__": TABLE},
    "half a character in its name": lambda: {"\ud800": TABLE},
    "zeros left out": lambda: {"a": TABLE.to_sparse()},
    "zeros left out by row": lambda: {"a": TABLE.to_sparse_csr()},
    "no numbers": lambda: {"a": TABLE.to("meta")},
    "rows of other lengths": lambda: {"a": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])},
}


@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage)")
@pytest.mark.parametrize("case", ENTRIES)
def test_pickled_weights_that_are_no_plain_tensors(case: str, tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_bert / "config.json").read_text())
    torch.save(ENTRIES[case](), tmp_path / "pytorch_model.bin")
    with refused(tmp_path / "pytorch_model.bin", kind=ModelError):
        prepare(tmp_path, tmp_path / "out", "encoder")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"left_out": ' + "[" * 5_000 + "]" * 5_000 + "}"], ids=["open", "closed"]
)
def test_notes_that_are_nested_deep(text: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    (folder / "sparsebench.json").write_text(text)
    assert left_out_files(prepare(folder, tmp_path / "out", "encoder")) == []


def test_a_file_of_a_terabyte_of_holes(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    with refused("model.safetensors", "1,099,511,627,776 bytes"):
        sources.fingerprint(sources.parse(f"path:{tmp_path}"), sources.Cache(tmp_path / "cache"))


PARTS: dict[str, Callable[[dict[str, torch.Tensor], str], object]] = {
    "no integers": lambda tensors, name: tensors.pop(f"{name}_packed"),
    "no scales": lambda tensors, name: tensors.pop(f"{name}_scale"),
    "no shape": lambda tensors, name: tensors.pop(f"{name}_shape"),
    "floats beside them": lambda tensors, name: tensors.update({name: tensors[f"{name}_scale"].clone()}),
    "a shape of one number": lambda tensors, name: tensors.update({f"{name}_shape": torch.tensor([32])}),
    "a shape of floats": lambda tensors, name: tensors.update({f"{name}_shape": torch.tensor([32.0, torch.nan])}),
    "a negative shape": lambda tensors, name: tensors[f"{name}_shape"].neg_(),
    "a larger shape": lambda tensors, name: tensors[f"{name}_shape"].mul_(1 << 40),
    "scales of a row": lambda tensors, name: tensors.update({f"{name}_scale": tensors[f"{name}_scale"][0].clone()}),
    "whole scales": lambda tensors, name: tensors.update({f"{name}_scale": tensors[f"{name}_scale"].int()}),
    "fewer integers": lambda tensors, name: tensors.update({f"{name}_packed": tensors[f"{name}_packed"][1:].clone()}),
    "longer integers": lambda tensors, name: tensors.update({f"{name}_packed": tensors[f"{name}_packed"].long()}),
}


@pytest.mark.parametrize("case", PARTS)
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_integers_that_do_not_fit_their_scales(bits: str, case: str, tiny_llama: Path, tmp_path: Path) -> None:
    make(tiny_llama, "decoder", {quantize_step(bits): tmp_path / "made"})
    path = tmp_path / "made" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("_packed")).removesuffix("_packed")
    PARTS[case](tensors, name)
    save_file(tensors, path)
    with refused(name, kind=ModelError):
        assess(tmp_path / "made", "decoder", [0.1], [0.1])
    with refused(name, kind=ModelError):
        load_model(tmp_path / "made", "decoder")
