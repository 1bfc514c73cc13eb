"""Compiles a source file of this folder once per compiler, flags, system and content; two processes may ask at once."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsebench import children
from sparsebench.sources import Cache

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-Wall", "-Wextra")
"""No -march: machines may share a cache. Functions name their own instruction sets and are chosen at run time."""
COMPILE_SECONDS = 300


@dataclass(frozen=True)
class Missing:
    """Why a library is not available here, and what would help."""

    reason: str


@functools.cache
def library(name: str, *more_flags: str) -> ctypes.CDLL | Missing:
    """Load ``native/NAME.cpp`` with the headers in its folder ``NAME``; compile it, with ``more_flags``, if not cached.

    Return Missing with the reason where it does not compile or load.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = next((words for words in (compiler_words("g++"), ["c++"]) if shutil.which(words[0])), None)
    if compiler is None:
        return Missing("no C++ compiler (install g++, or name one in CXX)")
    try:
        compiled = compile_source(source, compiler, (*FLAGS, *more_flags), Cache())
    except OSError as error:  # such as a cache that cannot be written
        return Missing(f"{source.name} is not compiled into the cache ({error})")
    if isinstance(compiled, Missing):
        return compiled
    try:
        return ctypes.CDLL(str(compiled))
    except OSError as error:
        return Missing(f"{compiled} does not load ({error}); remove it to compile again")


def compiler_words(default: str) -> list[str]:
    """Return the command of the C++ compiler: that in CXX, which may have arguments (``ccache g++``), else ``default``."""
    return shlex.split(os.environ.get("CXX", "")) or [default]


def compile_source(source: Path, compiler: Sequence[str], flags: Sequence[str], cache: Cache) -> Path | Missing:
    """Return the library of a source file, compiled into the cache unless it is there, or why it does not compile."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace", check=False)
    headers = sorted(source.with_suffix("").glob("*.h"))
    texts = [file.read_text() for file in (source, *headers)]
    executable = shutil.which(compiler[0])
    ingredients = (texts, executable, compiler[1:], version.stdout, flags, platform.machine(), platform.libc_ver())
    key = hashlib.sha256(repr(ingredients).encode()).hexdigest()[:16]
    target = cache.root / "native" / f"{source.stem}-{key}.so"
    if target.is_file():
        return target
    with cache.lock("native"):
        if target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(".compiling-*"):  # left by a killed process: only the lock's holder compiles
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".compiling-") as folder:
            output = Path(folder) / target.name
            command = [*compiler, str(source), "-o", str(output), *flags]
            try:
                finished = children.run(command, COMPILE_SECONDS)
            except subprocess.TimeoutExpired:
                return Missing(f"compiling {source.name} took over {COMPILE_SECONDS} seconds")
            if finished.returncode:
                lines = finished.stderr.splitlines() or ["no message"]
                reason = next((line for line in lines if "error" in line), lines[0])
                return Missing(f"{source.name} does not compile with {shlex.join(compiler)}: {reason}")
            os.replace(output, target)
    return target
