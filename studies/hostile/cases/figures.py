"""Figures of strangers: a ``.sql`` file in the current folder's ``figures``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from studies.hostile.cases.ledgers import changed, timed
from studies.hostile.registry import case
from studies.hostile.sandbox import MEGABYTES, Box, Step, unplant

_HEADER = "-- title: TITLE\n-- kind: bars\n-- x: x\n-- y: y\n-- series: s\n\n"
_ONE = "select 1 as x, 2 as y, 'a' as s;\n"


def _figure(box: Box, content: str | bytes, name: str = "hostile") -> Iterator[Step]:
    changed(box)
    folder = box.out / "project/figures"
    folder.mkdir(parents=True)
    text = content.encode() if isinstance(content, str) else content
    for word, path in ((b"SECRET", box.canary), (b"MARKER", box.marker)):
        text = text.replace(word, os.fsencode(path))
    (folder / f"{name}.sql").write_bytes(text)
    box.work = folder.parent
    more = timed(box, "figures")
    words = (
        name,
        "--format",
        "png",
        "--format",
        "svg",
        "--out",
        box.out / "pictures",
        "--ledger",
        box.out / "ledger.duckdb",
    )
    endless = "range(10000" in str(content)  # a second on both cores and 4 GB is what it is given
    yield box.do("figures", *words, *more, seconds=3.5 if endless else 1.5, megabytes=4500 if endless else MEGABYTES)
    yield box.do(
        "report",
        "--out",
        box.out / "report.md",
        "--figures",
        box.out / "pictures",
        "--ledger",
        box.out / "ledger.duckdb",
    )


_SQL = {
    "that reads a file": "select content as s, 1 as x, 2 as y from read_text('SECRET');",
    "that reads CSV": "select column0 as s, 1 as x, 2 as y from read_csv('SECRET', header=false);",
    "that writes a file": "copy (select 1) to 'MARKER';",
    "that attaches": "attach 'MARKER' as other; select 1 as x, 2 as y, 'a' as s;",
    "that never ends": "select count(*) as x, 1 as y, 'a' as s from range(1000000000) a, range(1000000000) b;",
    "of a million rows": "select range as x, range as y, 's' || range as s from range(1000000);",
    "of 5,000 panels": "select range as x, 1 as y, 's' || range as s from range(5000);\n",
    "of NaN": "select 'NaN'::double as x, 'Infinity'::double as y, 'a' as s;",
    "of huge numbers": "select 1e308 as x, -1e308 as y, 'a' as s union all select -1e308, 1e308, 'b';",
    "of nested values": "select {'a': [1]} as x, [1] as y, map {'a': 1} as s;",
    "of blobs": "select '\\xFF'::blob as x, 1 as y, '\\xFF'::blob as s;",
    "of mathtext": "select 1 as x, 2 as y, '$\\frac{a$ $\\undefined$' as s;",
    "of HTML": "select 1 as x, 2 as y, '<script>alert(1)</script>' as s;",
    "of controls": "select 1 as x, 2 as y, 'a' || chr(27) || '[2J' || chr(8) || chr(1) as s;",
    "of a text of 20 MB": "select 1 as x, 2 as y, repeat('x', 20000000) as s;",
}


@case("a figure", _SQL)
def sql(box: Box, query: str) -> Iterator[Step]:
    yield from _figure(box, _HEADER.replace("TITLE", "t") + query)


_TITLES = {
    "mathtext": "$\\frac{$ \\input{x}", "mathtext that is slow": "$" + "\\sqrt{" * 400 + "x" + "}" * 400 + "$",
    "HTML": "<script>alert(1)</script>", "an escape": "a\x1b[2J\x1b]0;hostile\x07", "a megabyte": "m" * 1_000_000,
    "a Markdown picture": "![x](http://stranger.example/x.png)", "a tag": "</title><svg onload=alert(1)>",
}  # fmt: skip


@case("a figure's title of", _TITLES)
def title(box: Box, text: str) -> Iterator[Step]:
    yield from _figure(box, _HEADER.replace("TITLE", text) + _ONE)


_FILES: dict[str, bytes] = {
    "not UTF-8": b"-- title: \xff\n", "empty": b"", "of a NUL": _HEADER.encode() + b"select 1\0;",
    "of 100,000 notes": b"-- title: t\n-- kind: bars\n-- x: x\n-- y: y\n" + b"-- note: n\n" * 100_000 + _ONE.encode(),
    "of a range of 10**400": _HEADER.encode() + b"-- ymin: " + b"9" * 400 + b"\n" + _ONE.encode(),
}  # fmt: skip


@case("a figure's file", _FILES)
def file(box: Box, content: bytes) -> Iterator[Step]:
    yield from _figure(box, content)


@case(
    "a figure that is",
    {"a link to a secret": "link", "a FIFO": "fifo", "a folder": "folder", "named with an escape": "name"},
)
def kind(box: Box, what: str) -> Iterator[Step]:
    changed(box)
    folder = box.out / "project/figures"
    folder.mkdir(parents=True)
    place = folder / "hostile.sql"
    if what == "link":
        place.symlink_to(box.canary)
    elif what == "fifo":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        (folder / "a\x1b[2J.sql").write_text(_HEADER + _ONE)
    box.work = folder.parent
    yield box.do("figures", "--list")
    yield box.do("report", "--out", box.out / "report.md", "--ledger", box.out / "ledger.duckdb")
    unplant(place)


@case("a picture that is a link to a secret")
def picture(box: Box) -> Iterator[Step]:
    """The page holds the pictures that lie in its folder of figures."""
    changed(box)
    pictures: Path = box.out / "pictures"
    pictures.mkdir()
    (pictures / "score.png").symlink_to(box.canary)
    yield box.do("report", "--out", box.out / "report.md", "--figures", pictures, "--ledger", box.out / "ledger.duckdb")
    unplant(pictures / "score.png")
