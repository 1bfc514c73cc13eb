"""Wheels of strangers, fetched by pip from a folder and unpacked for what lies inside."""

from __future__ import annotations

import base64
import json
import stat
import zipfile
from collections.abc import Callable, Iterator

from studies.hostile.harmless import DIST, pack_wheel, wheel
from studies.hostile.registry import case
from studies.hostile.sandbox import UP, Box, Step

Fill = Callable[[zipfile.ZipFile, Box], object]


def _add(name: str, content: str | bytes = "planted") -> Fill:
    return lambda archive, box: archive.writestr(name, content)


def _link(archive: zipfile.ZipFile, box: Box, name: str, target: str) -> None:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, target)


def _absolute(archive: zipfile.ZipFile, box: Box) -> None:
    archive.writestr(f"hostile/model/{box.outside}/planted", "x")


def _compressed(name: str, megabytes: int) -> Fill:
    def fill(archive: zipfile.ZipFile, box: Box) -> None:
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w", force_zip64=True) as file:
            for _ in range(megabytes):
                file.write(bytes(1 << 20))

    return fill


def _many(count: int, folder: str) -> Fill:
    def fill(archive: zipfile.ZipFile, box: Box) -> None:
        for place in range(count):
            archive.writestr(zipfile.ZipInfo(f"{folder}/{place}"), b"")

    return fill


def _setup(archive: zipfile.ZipFile, box: Box) -> None:
    code = f"open({str(box.marker)!r}, 'w')\n"
    for name in (
        "setup.py",
        "hostile/__init__.py",
        "hostile.pth",
        "sitecustomize.py",
        "hostile-1.0.data/scripts/run",
        "conftest.py",
    ):
        archive.writestr(name, f"import os; {code}" if name.endswith(".pth") else code)
    archive.writestr(
        f"{DIST}/entry_points.txt", "[sparsebench.methods]\nhostile = hostile:x\n[console_scripts]\nls = hostile:x\n"
    )


def _both(archive: zipfile.ZipFile, box: Box) -> None:
    for name in ("x", "x/y"):
        archive.writestr(f"hostile/model/{name}", "planted")


def _twice(archive: zipfile.ZipFile, box: Box) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("hostile/model/config.json", json.dumps({"model_type": "bert"}))


_FILLS: dict[str, Fill] = {
    "nothing more": lambda archive, box: None,
    "a member that leads out": _add(f"hostile/model/{UP}/outside/planted"),
    "a member that leads out of a folder": _add("hostile/model/x/../../../../../../outside/planted"),
    "an absolute member": _add("/outside/planted"),
    "an absolute member inside": _absolute,
    "a member with backslashes": _add("hostile/model/..\\..\\..\\..\\outside\\planted"),
    "a member with a drive": _add("hostile/model/C:\\planted"),
    "a member with NUL": _add("hostile/model/a\0b"),
    "a member with an escape": _add("hostile/model/\x1b[2J"),
    "a member of a long name": _add("hostile/model/" + "n" * 300),
    "a member that is a folder and a file": _both,
    "a member of the name .": _add("hostile/model/."),
    "a member twice": _twice,
    "a link to a secret": lambda archive, box: _link(archive, box, "hostile/model/notes.txt", str(box.canary)),
    "a link to a folder": lambda archive, box: _link(archive, box, "hostile/model/extra", str(box.outside)),
    "code to set up": _setup,
    "2 GB of zeros wanted": _compressed("hostile/model/zeros.json", 2048),
    "2 GB of zeros not wanted": _compressed("hostile/other/zeros.json", 2048),
    "2 GB of metadata": _compressed(f"{DIST}/LICENSE", 2048),
    "100,000 members wanted": _many(100_000, "hostile/model"),
    "1,000,000 members not wanted": _many(1_000_000, "hostile/other"),
}  # fmt: skip


@case("a wheel with", _FILLS)
def fill(box: Box, add: Fill) -> Iterator[Step]:
    yield wheel(box, pack_wheel(box, add))


@case("a wheel of another sha256")
def digest(box: Box) -> Iterator[Step]:
    yield wheel(box, pack_wheel(box), digest="0" * 64)


@case(
    "a wheel's inner path",
    {"../": "../../../../outside/", "absolute": "/outside/", "an escape": "a\x1b[2J/", "empty": "/"},
)
def inner(box: Box, path: str) -> Iterator[Step]:
    yield wheel(box, pack_wheel(box), path)


@case("a wheel that is", {"no archive": b"PK\x03\x04 no", "empty": b"", "an end alone": b"PK\x05\x06" + bytes(18)})
def broken(box: Box, content: bytes) -> Iterator[Step]:
    path = pack_wheel(box)
    path.write_bytes(content)
    yield wheel(box, path)


@case("a wheel with a damaged member")
def damaged(box: Box) -> Iterator[Step]:
    path = pack_wheel(box)
    content = bytearray(path.read_bytes())
    content[60:200] = b"\xa5" * 140
    path.write_bytes(content)
    yield wheel(box, path)


@case("a source distribution in place of a wheel")
def source(box: Box) -> Iterator[Step]:
    import io
    import tarfile

    folder = box.input / "index"
    folder.mkdir()
    code = (
        f"open({str(box.marker)!r}, 'w')\nfrom setuptools import setup\nsetup(name='hostile', version='1.0')\n".encode()
    )
    with tarfile.open(folder / "hostile-1.0.tar.gz", "w:gz") as archive:
        for name, content in {
            "setup.py": code,
            "PKG-INFO": b"Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n",
        }.items():
            info = tarfile.TarInfo(f"hostile-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    yield wheel(box, folder / "hostile-1.0.tar.gz", digest="0" * 64)


@case("a link in the cache of wheels")
def cached_link(box: Box) -> Iterator[Step]:
    """Another program may have written to the cache; a payload changed there is found out."""
    step = wheel(box, pack_wheel(box))
    yield step
    for path in (box.root / "cache/payloads").glob("*/*/config.json"):
        path.write_text(json.dumps({"model_type": base64.b64encode(b"hostile").decode()}))
    yield step
