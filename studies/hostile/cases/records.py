"""Records and bundles of strangers: what they say must be shown as words, where they point must not be gone to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparsebench.environment import stable_id
from studies.hostile import benign
from studies.hostile.harmless import write
from studies.hostile.registry import case
from studies.hostile.sandbox import REPOSITORY, UP, Box, Step, unplant

Record = dict[str, Any]


def _records(box: Box, change: Callable[[Record], object]) -> Path:
    """A folder of records, each changed, beside what will be the ledger."""
    folder = box.out / "records"
    folder.mkdir()
    for place, record in enumerate(benign.records(REPOSITORY)):
        change(record)
        named = str(record.get("cell_id")), str(record.get("status")), str(record.get("manifest"))
        plain = all(name.replace("-", "").isalnum() and name.isascii() and len(name) < 99 for name in named)
        path = folder / ("plan-g2p.json" if record.get("kind") == "plan" else f"{place:020x}.done.json")
        path.write_text(json.dumps(record)) if not plain else write(folder, record)
    return folder


def _shown(box: Box, folder: Path) -> Iterator[Step]:
    """Everything that reads a ledger or records."""
    ledger = box.out / "ledger.duckdb"
    # Which of a batch's records is no record is found by halves: some ingests more.
    done = yield box.do("ingest", folder, "--ledger", ledger, seconds=3)
    if done.code == 0:  # type: ignore[attr-defined]
        yield box.do("sql", "select * from results", "--ledger", ledger)
        yield box.do("report", "--out", box.out / "report.md", "--figures", box.out / "figures", "--ledger", ledger)
    yield box.do("status", "--ledger", ledger)


def _everywhere(text: str) -> Callable[[Record], None]:
    """Put a text wherever a record says something in words."""

    def change(record: Record) -> None:
        record["manifest"] = text
        for cell in record.get("cells", ()):
            cell["label"] = text
            cell["variant"] |= {
                "model": text,
                "source": text,
                "method": text if cell["variant"]["method"] != "dense" else "dense",
            }
        if "variant" in record:
            variant = record["variant"]
            variant |= {"model": text, "source": text, "method": text if variant["method"] != "dense" else "dense"}
            record["environment"] |= {"machine": text, "cpu": text}
            record["environment"]["id"] = stable_id(record["environment"])
            record["where"]["machine"] = text
            record["result"]["notes"] = [text]
            if record["stage"] == "benchmarks":
                record["result"] |= {"task": text, "metric": text}
                record["settings"]["task"] = text

    return change


_TEXTS = {
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "an end of script": "</script></style></textarea><svg onload=alert(1)>",
    "an attribute": '" onmouseover="alert(1)" x="',
    "a Markdown picture": "![x](http://stranger.example/x.png)",
    "a Markdown picture by reference": "![x]\n\n[x]: http://stranger.example/x.png",
    "a Markdown picture of a secret": "![x](OUTSIDE/secret.txt)",
    "a Markdown picture of a secret, ../": "![x](../../../outside/secret.txt)",
    "a Markdown picture that is not there": "![x](nothing.png)",
    "a Markdown link": "[x](javascript:alert(1))",
    "a Markdown table and heading": "a | b |\n\n# Hostile heading\n\n| c",
    "a code fence": "`</code>```\n```\n<script>alert(1)</script>\n```",
    "HTML behind an escape": "\\<img src=x onerror=alert(1)>\\",
    "HTML in Markdown": "a **b** <img src=http://stranger.example/x> &lt;script>",
    "a template": "{{ 7 * 191 }}{% include '/etc/passwd' %}",
    "SQL": "'; ATTACH 'x.duckdb'; --",
    "mathtext": "$\\frac{$ \\input{/etc/passwd}",
}


@case("records of", _TEXTS)
def texts(box: Box, text: str) -> Iterator[Step]:
    yield from _shown(box, _records(box, _everywhere(text.replace("OUTSIDE", str(box.outside)))))


_CONTROLS = {
    "escapes": "\x1b[2J\x1b]0;hostile\x07\x1b[8m", "controls": "a\x08\x08\x00\x7f\x9b2Jb", "two directions": "abc‮fed⁦",
    "carriage returns": "done\rHIDDEN", "a lone surrogate": "\ud800", "a megabyte": "m" * 1_000_000,
}  # fmt: skip


@case("records with", _CONTROLS)
def controls(box: Box, text: str) -> Iterator[Step]:
    yield from _shown(box, _records(box, _everywhere(text)))


def _named(path: str) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        record["manifest"] = path
        for cell in record.get("cells", ()):
            cell["cell_id"] = path
            cell["variant"]["id"] = path
        if "cell_id" in record:
            record["cell_id"] = path
            record["variant"]["id"] = path

    return change


@case(
    "records whose ids are", {"../": f"{UP}/outside/planted", "absolute": "OUTSIDE/planted", "NUL": "a\0b", "empty": ""}
)
def ids(box: Box, path: str) -> Iterator[Step]:
    yield from _shown(box, _records(box, _named(path.replace("OUTSIDE", str(box.outside)))))


@case("a failed record that points out", {"../": f"{UP}/outside/secret", "absolute": "OUTSIDE/secret"})
def failed(box: Box, path: str) -> Iterator[Step]:
    """`status` reads the record of each failed cell by its id."""
    folder = box.out / "records"
    folder.mkdir()
    name = path.replace("OUTSIDE", str(box.outside))
    (box.outside / "secret.failed.json").write_text(json.dumps({"reason": box.secret}))
    plan = benign.records(REPOSITORY)[0]
    for cell in plan["cells"]:
        cell["cell_id"] = name
    write(folder, plan)
    yield box.do("status", "--ledger", box.out / "ledger.duckdb")


def _set(*way: str, value: Any) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        if record.get("stage") != "benchmarks" and way[0] == "result":
            return
        place: Any = record
        for key in way[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict) and way[-1] in place:
            place[way[-1]] = value

    return change


_VALUES = {
    "a score of NaN": _set("result", "score", value=float("nan")),
    "a score of infinity": _set("result", "score", value=float("inf")),
    "a score of 10**400": _set("result", "score", value=10**400),
    "a score of text": _set("result", "score", value="1; drop table"),
    "a score of null": _set("result", "score", value=None),
    "n of 10**30": _set("result", "n", value=10**30),
    "a negative n": _set("result", "n", value=-5),
    "outcomes of null": _set("result", "outcomes", value=None),
    "outcomes of text": _set("result", "outcomes", value=["x"] * 10),
    "a result of null": _set("result", value=None),
    "a result that is a list": _set("result", value=[1]),
    "a variant of null": _set("variant", value=None),
    "a variant of text": _set("variant", value="x"),
    "a variant with more keys": lambda record: record.get("variant", {}).update(hostile=1),
    "a plan of cells of null": lambda record: record.update(cells=None) if "cells" in record else None,
    "a plan of cells of text": lambda record: record.update(cells=["x"]) if "cells" in record else None,
    "a plan with a larger variant": lambda record: [cell["variant"].update(hostile=1) for cell in record.get("cells", ())],
    "a status that is unknown": _set("status", value="../../x"),
    "a stage that is unknown": _set("stage", value="hostile"),
    "a format of text": _set("format", value="1"),
    "a format of null": _set("format", value=None),
    "a date in year 10**9": _set("started_at", value="1000000000-01-01T00:00:00"),
    "a date that is a number": _set("started_at", value=5),
    "settings of null": _set("settings", value=None),
    "settings of a list": _set("settings", value=[]),
    "an environment of null": _set("environment", value=None),
    "threads of text": lambda record: record.get("environment", {}).update(threads="x"),
    "seconds of 1e308": _set("seconds", value=1e308),
}  # fmt: skip


@case("records with", _VALUES)
def values(box: Box, change: Callable[[Record], object]) -> Iterator[Step]:
    yield from _shown(box, _records(box, change))


_FILES = {
    "nested 100,000 deep": b'{"format": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5,000 digits": b'{"format": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"format": 1, "\xff": 1}',
    "empty": b"",
    "a list": b"[]",
}


@case("a record file", _FILES)
def files(box: Box, content: bytes) -> Iterator[Step]:
    folder = box.out / "records"
    folder.mkdir()
    (folder / f"{0:020x}.done.json").write_bytes(content)
    (folder / f"{1:020x}.failed.json").write_bytes(content)
    (folder / "plan-x.json").write_bytes(content)
    yield from _shown(box, folder)


def zeros(size: int, block: bytes = b"0") -> bytes:
    """``size`` times a byte as a zstd frame, some kilobytes a gigabyte."""
    import zstandard

    packer = zstandard.ZstdCompressor(level=3).compressobj()
    piece = block * (1 << 24)
    return b"".join(packer.compress(piece) for _ in range(size >> 24)) + packer.flush()


def deep_window() -> bytes:
    """A zstd frame that asks for a window of 2 GB."""
    import zstandard

    wanted = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1)
    packer = zstandard.ZstdCompressor(compression_params=wanted).compressobj()
    return packer.compress(b"{}\n") + packer.flush()


@case("a bundle", {
    "of one line of 4 GB": lambda: zeros(4 << 30), "of 4 GB of empty lines": lambda: zeros(4 << 30, b"\n"),
    "of a billion empty objects": lambda: zeros(1 << 30, b"{}\n"), "that asks for a window of 2 GB": deep_window,
    "that is no zstd": lambda: b"PK\x03\x04", "of no bytes": lambda: b"",
})  # fmt: skip
def bundle(box: Box, make: Callable[[], bytes]) -> Iterator[Step]:
    path = box.input / "bundle.jsonl.zst"
    path.write_bytes(make())
    yield box.do("ingest", path, "--ledger", box.out / "ledger.duckdb")


@case("a link in a folder of records", {"to a secret": "secret.txt", "to a folder": "", "to nothing": "nothing"})
def record_link(box: Box, target: str) -> Iterator[Step]:
    folder = box.out / "records"
    folder.mkdir()
    (folder / "plan-x.json").symlink_to(box.outside / target)
    (folder / f"{0:020x}.failed.json").symlink_to(box.outside / target)
    yield box.do("ingest", folder, "--ledger", box.out / "ledger.duckdb")
    yield box.do("status", "--ledger", box.out / "ledger.duckdb")
    unplant(*folder.iterdir())


@case("a FIFO in a folder of records")
def record_fifo(box: Box) -> Iterator[Step]:
    folder = box.out / "records"
    folder.mkdir()
    os.mkfifo(folder / "plan-x.json")
    os.mkfifo(folder / f"{0:020x}.failed.json")
    yield box.do("ingest", folder, "--ledger", box.out / "ledger.duckdb")
    yield box.do("status", "--ledger", box.out / "ledger.duckdb")
