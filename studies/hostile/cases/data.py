"""Data files of strangers, as calibration text and as sentence pairs."""

from __future__ import annotations

import gzip
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from studies.hostile import benign
from studies.hostile.cases.records import zeros
from studies.hostile.harmless import calibrate, score
from studies.hostile.registry import case
from studies.hostile.sandbox import Box, Step


def _gzip(content: bytes, times: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with gzip.open(path, "wb", 6) as file:
            for _ in range(times):
                file.write(content)

    return write


def _bytes(content: Callable[[], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content())

    return write


def _parquet(lie: bytes = b"", nested: bool = False, rows: int = 10) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["the cat " * 100]))
        pq.write_table(pa.table({"text": values}), path, compression="zstd")
        if lie:
            content = path.read_bytes()
            path.write_bytes(content[:-200] + lie * (192 // len(lie)) + content[-8:])

    return write


def _arrow(cut: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa

        table = pa.table({"text": ["the cat sat"] * 100})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        content = bytearray(path.read_bytes())
        if cut:
            del content[len(content) // 2 :]
        else:  # the batch's own numbers
            place = content.rindex(b"the cat sat" * 3) - 900
            content[place : place + 400] = b"\xff\x7f" * 200
        path.write_bytes(content)

    return write


def _deep(kind: bytes) -> bytes:
    return b'{"text": ' + kind * 100_000 + b"\n"


_GIGABYTE = 1 << 10
_FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "2 GB of gzip, one line": ("text.jsonl.gz", _gzip(b'"' + b"x" * (1 << 20), 2 * _GIGABYTE)),
    "2 GB of gzip, plain text": ("text.txt.gz", _gzip(b"x" * (1 << 20), 2 * _GIGABYTE)),
    "2 GB of gzip, many lines": ("text.txt.gz", _gzip(b"the cat\n" * (1 << 17), 2 * _GIGABYTE)),
    "2 GB of gzip, empty lines": ("text.txt.gz", _gzip(b"\n" * (1 << 20), 2 * _GIGABYTE)),
    "2 GB of gzip, JSON": ("text.json.gz", _gzip(b" " * (1 << 20), 2 * _GIGABYTE)),
    "2 GB of gzip, CSV": ("text.csv.gz", _gzip(b"x" * (1 << 20), 2 * _GIGABYTE)),
    "4 GB of zstd": ("text.jsonl.zst", _bytes(lambda: zeros(4 << 30))),
    "100 MB of xz": ("text.jsonl.xz", _bytes(lambda: lzma.compress(bytes(100 << 20), preset=0))),
    "gzip that is cut off": ("text.jsonl.gz", _bytes(lambda: gzip.compress(b'{"text": "x"}\n' * 9999)[:-20])),
    "JSON nested deep": ("text.json", _bytes(lambda: _deep(b"["))),
    "JSON lines nested deep": ("text.jsonl", _bytes(lambda: _deep(b'{"text": '))),
    "JSON lines of numbers": ("text.jsonl", _bytes(lambda: b"1\n2\nnull\n")),
    "a number of 5,000 digits": ("text.jsonl", _bytes(lambda: b'{"text": ' + b"9" * 5000 + b"}\n")),
    "lone surrogates": ("text.jsonl", _bytes(lambda: b'{"text": "\\ud800 the cat sat on the mat"}\n' * 50)),
    "keys with escapes": ("text.jsonl", _bytes(lambda: json.dumps({"\x1b[2J": "x", "\x1b]0;x\x07": 1}).encode() + b"\n")),
    "a CSV field of 100 MB": ("text.csv", _bytes(lambda: b"text\n" + b"x" * 100_000_000 + b"\n")),
    "a CSV of a million columns": ("text.csv", _bytes(lambda: b"a," * 1_000_000 + b"text\n" + b"1," * 1_000_000 + b"x\n")),
    "a CSV with NUL": ("text.csv", _bytes(lambda: b"text\n\0\0\n")),
    "a CSV without an end of quotes": ("text.csv", _bytes(lambda: b'text\n"' + b"x\n" * 100_000)),
    "a word of 20 MB": ("text.txt", _bytes(lambda: b"x" * 20_000_000)),
    "not UTF-8": ("text.txt", _bytes(lambda: b"\xff\xfe" * 100)),
    "Parquet that lies": ("text.parquet", _parquet(b"\xff\x7f")),
    "Parquet, 3 GB out of one word": ("text.parquet", _parquet(rows=4_000_000)),
    "Parquet, only its name": ("text.parquet", _bytes(lambda: b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1")),
    "Arrow that lies": ("text.arrow", _arrow(cut=False)),
    "Arrow that is cut off": ("text.arrow", _arrow(cut=True)),
    "Arrow of 2**31 bytes of schema": ("text.arrow", _bytes(lambda: b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(64))),
    "Arrow, only its name": ("text.arrow", _bytes(lambda: b"ARROW1\0\0" + b"\xff" * 64 + b"ARROW1")),
}  # fmt: skip


@case("calibration text:", _FILES)
def calibration(box: Box, how: tuple[str, Callable[[Path], None]]) -> Iterator[Step]:
    name, write = how
    write(box.input / name)
    yield calibrate(box, box.model(), box.input / name)


_SCORED = {
    name: _FILES[name]
    for name in ("2 GB of gzip, one line", "JSON nested deep", "Arrow that lies", "Parquet that lies")
}


@case("pairs to score:", _SCORED)
def pairs(box: Box, how: tuple[str, Callable[[Path], None]]) -> Iterator[Step]:
    name, write = how
    write(box.input / name)
    yield score(box, box.model(benign.BERT), box.input / name)


_ROWS: dict[str, object] = {
    "scores of NaN": float("nan"), "scores of 1e999": 1e999, "scores of text": "high", "scores of null": None,
    "scores of lists": [1], "scores of 10**400": 10**400,
}  # fmt: skip


@case("pairs with", _ROWS)
def rows(box: Box, value: object) -> Iterator[Step]:
    line = json.dumps({"sentence1": "the cat", "sentence2": "a dog", "score": value}) + "\n"
    (box.input / "pairs.jsonl").write_text(line * 4)
    yield score(box, box.model(benign.BERT), box.input / "pairs.jsonl")


@case(
    "calibration text that is",
    {"a FIFO": "fifo", "a folder": "folder", "a device": "/dev/zero", "endless": "/dev/urandom"},
)
def kinds(box: Box, what: str) -> Iterator[Step]:
    path = Path(what) if what.startswith("/") else box.input / what
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    yield calibrate(box, box.model(), path)
