"""A library is compiled once, by one process at a time, and its absence is explained."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsebench.native import Missing, build
from sparsebench.sources import Cache

ADD = 'extern "C" int add(int a, int b) { return a + b; }\n'
ADD_BY_HEADER = '#include "add/sum.h"\n' + ADD.replace("a + b", "SUM")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "add.cpp"
    path.write_text(ADD)
    return path


needs_compiler = pytest.mark.skipif(not build.shutil.which("g++"), reason="no g++")


@needs_compiler
def test_compiled_once_and_again_when_the_source_or_a_header_of_its_folder_changes(
    source: Path, tmp_path: Path
) -> None:
    cache, header = Cache(tmp_path / "cache"), tmp_path / "add" / "sum.h"
    killed = cache.root / "native" / ".compiling-killed"
    killed.mkdir(parents=True)
    header.parent.mkdir()
    made = []
    for code, text in ((ADD, ""), (ADD, ""), (ADD_BY_HEADER, "a - b"), (ADD_BY_HEADER, "a * b")):
        header.write_text(f"#define SUM {text}\n")
        source.write_text(code)
        made.append(build.compile_source(source, ["g++"], build.FLAGS, cache))
    stamps = [one.stat().st_mtime_ns for one in made]
    assert made[0] == made[1] and stamps[0] == stamps[1] and not killed.exists()
    assert [build.ctypes.CDLL(str(one)).add(2, 3) for one in made] == [5, 5, -1, 6]


@needs_compiler
def test_two_processes_at_once_leave_one_library(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sparsebench.native import build; from sparsebench.sources import Cache;"
        "print(build.compile_source(Path(sys.argv[1]), ['g++'], build.FLAGS, Cache(Path(sys.argv[2]))))"
    )
    words = [sys.executable, "-c", code, str(source), str(tmp_path / "cache")]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {one.communicate()[0].strip() for one in both}
    assert len(answers) == 1
    assert [path.name for path in (tmp_path / "cache" / "native").iterdir()] == [Path(answers.pop()).name]


@needs_compiler
def test_a_source_that_does_not_compile_is_explained(source: Path, tmp_path: Path) -> None:
    source.write_text("int add( {")
    made = build.compile_source(source, ["g++"], build.FLAGS, Cache(tmp_path / "cache"))
    assert isinstance(made, Missing)
    assert "add.cpp" in made.reason and "error" in made.reason
    assert not list((tmp_path / "cache" / "native").iterdir())


def test_a_compiler_may_speak_another_encoding(source: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nprintf 'Datei \\374ber: error'; printf 'Datei \\374ber: error' >&2; exit 1\n")
    compiler.chmod(0o755)
    made = build.compile_source(source, [str(compiler)], build.FLAGS, Cache(tmp_path / "cache"))
    assert isinstance(made, Missing) and "Datei \ufffdber: error" in made.reason


@pytest.fixture
def no_library() -> Iterator[None]:
    """No library has been loaded."""
    build.library.cache_clear()
    yield
    build.library.cache_clear()


def test_without_a_compiler_the_reason_names_the_fix(monkeypatch: pytest.MonkeyPatch, no_library: None) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    made = build.library("add")
    assert isinstance(made, Missing) and "install g++" in made.reason


@needs_compiler
def test_cxx_may_have_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_library: None) -> None:
    compiler = tmp_path / "wrapper"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} g++")
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    assert not isinstance(build.library("checksum"), Missing)
    assert "g++" in (tmp_path / "calls").read_text()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_a_reason_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_library: None
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    made = build.library("checksum")
    assert isinstance(made, Missing) and str(tmp_path) in made.reason
