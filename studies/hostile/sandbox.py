"""A sandbox for one hostile input: canaries beside it, commands run inside it, and what became of all that.

    outside/        what no command may open, change or add to: a secret, a file to keep, weights
    input/by/stranger/   what the case hands over
    work/           the current folder; only ``work/out`` may be written
    home/, cache/, tmp/  where the environment points

A model in ``input/by/stranger/model``, an output in ``work/out/by/NAME`` and a prepared model in
``cache/work/models/ID`` lie equally deep, so that one number of ``../`` leads from each of them to ``outside``.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studies.hostile import benign
from studies.hostile.pages import live
from studies.hostile.watch import Listener, Watch

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PROGRAM = (sys.executable, "-P", "-m", "sparsebench")
UP = "../../../.."
"""From a model, an output or a prepared model to the sandbox's root."""
SECONDS, MEGABYTES = 1.0, 500
"""CPU beyond what harmless input takes, and peak memory, at most; also megabytes written."""
PATIENCE = 20.0
"""Wall seconds after which a command is ended, beside six times the CPU of harmless input; more on a busy machine."""
_MEMORY, _FILE = 10 << 30, 1 << 30
"""Bytes of address space, and of a file, at which the kernel refuses more."""
CPU = 10
"""Seconds of CPU beyond those of harmless input after which the kernel ends a process."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SCANNED = 64 << 20


@dataclass(frozen=True)
class Step:
    """One command; ``like`` names the harmless command whose cost is its baseline."""

    words: tuple[str, ...]
    like: str
    seconds: float = SECONDS
    megabytes: float = MEGABYTES


@dataclass(frozen=True)
class Done:
    """What one command cost and said. ``code`` is negative for a signal; ``peak`` is megabytes of its largest process."""

    step: Step
    code: int
    cpu: float
    peak: float
    output: str
    in_time: bool


@dataclass
class Box:
    """The sandbox of one case. ``may_open``: it hands over a name of a file outside, which may be read but not shown."""

    root: Path
    program: tuple[str, ...] = PROGRAM
    may_open: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    template: Path | None = None
    baselines: dict[str, Done] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.outside, self.work = self.root / "outside", self.root / "work"
        self.input, self.out = self.root / "input/by/stranger", self.root / "work/out/by"
        for folder in (self.outside, self.input, self.out, *(self.root / name for name in ("home", "cache", "tmp"))):
            folder.mkdir(parents=True)
        self.secret = f"SECRET{secrets.token_hex(16)}"
        self.marker = self.root / "marker"
        self.canary = self.outside / "secret.txt"
        self.kept = self.outside / "keep.txt"
        self.canary.write_text(f'{{"text": "{self.secret}"}}\n')
        self.kept.write_text("this must stay as it is\n")
        if self.template:
            shutil.copytree(self.template / "cache", self.root / "cache", dirs_exist_ok=True)
        hidden = self.secret.encode() * 8  # 304 bytes: 76 float32
        shapes = benign.llama_shapes()
        whole = benign.safetensors(shapes, __metadata__={"note": self.secret})
        (self.outside / "weights.safetensors").write_bytes(whole[: -len(hidden)] + hidden)

    def do(self, *words: str | Path, like: str = "", seconds: float = SECONDS, megabytes: float = MEGABYTES) -> Step:
        """A command of the program, by its words; its cost is compared with that of the verb ``like`` (default: its own)."""
        texts = tuple(map(str, words))
        return Step(texts, like or texts[0], seconds, megabytes)

    def model(self, config: dict[str, Any] | None = None, **changes: Any) -> Path:
        """A harmless model as ``model`` in the input, with these keys changed in its config.json."""
        return benign.model(self.input / "model", {**(config or benign.LLAMA), **changes})

    def baseline(self, step: Step) -> Done:
        """What harmless input costs; while that is being found out, more than enough."""
        return self.baselines.get(step.like, Done(step, 0, 60.0, 8000.0, "", True))

    def run(self, step: Step) -> Done:
        """Run one command with ``yes`` on its standard input, limits on what it takes, and an end."""
        said, result, usual = self.root / "said", self.root / "result", self.baseline(step).cpu
        wall = (PATIENCE + 6 * usual) * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) - 1)
        limits = (wall, int(usual + step.seconds) + CPU, _MEMORY, _FILE)
        spawn = [sys.executable, "-I", "-S", str(Path(__file__).with_name("spawn.py")), str(result), *map(str, limits)]
        with (self.root / "yes").open("rb") as answers, said.open("wb") as output:
            subprocess.run(
                [*spawn, *self.program, *step.words], cwd=self.work, env=self._environment(), stdin=answers, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, check=True,
            )  # fmt: skip
        code, cpu, peak, in_time = result.read_text().split()
        text = said.read_bytes()[:_SCANNED].decode(errors="replace")
        return Done(step, int(code), float(cpu), int(peak) / 1000, text, in_time == "1")

    def _environment(self) -> dict[str, str]:
        home = self.root / "home"
        places = {
            "HOME": home, "XDG_CACHE_HOME": home / ".cache", "XDG_CONFIG_HOME": home / ".config", "HF_HOME": home / "hf",
            "XDG_DATA_HOME": home / ".local", "MPLCONFIGDIR": home / "matplotlib", "TMPDIR": self.root / "tmp",
            "SPARSEBENCH_CACHE": self.root / "cache", "PYTHONPATH": REPOSITORY,
        }  # fmt: skip
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "CC", "CXX") if name in os.environ}
        fixed = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**kept, **fixed, **{name: str(path) for name, path in places.items()}, **self.environment}


@dataclass(frozen=True)
class Verdict:
    """What a case came to: its commands, and everything that went wrong."""

    done: tuple[Done, ...]
    wrong: tuple[str, ...]
    cpu: float
    peak: float

    @property
    def word(self) -> str:
        """FAILED, refused (the last command ended with an error) or harmless."""
        return "FAILED" if self.wrong else "refused" if self.done and self.done[-1].code else "harmless"


def judge(box: Box, steps: Iterator[Step]) -> Verdict:
    """Build the case's input, run its commands and look at everything. ``steps`` is sent what became of each command."""
    (box.root / "yes").write_bytes(b"y\n" * 50_000)
    pending = next(steps, None)
    before = _snapshot(box)
    done: list[Done] = []
    with Watch(box.outside) as watch, Listener() as listener:
        box.environment |= dict.fromkeys(("HF_ENDPOINT", "http_proxy", "https_proxy", "all_proxy"), listener.url)
        while pending is not None:
            done.append(box.run(pending))
            try:
                pending = steps.send(done[-1])  # type: ignore[attr-defined]
            except StopIteration:
                break
        opened, asked = watch.opened(), listener.asked
    wrong = [problem for one in done for problem in _costs(one, box.baseline(one.step)) + _shown(one, box)]
    if opened and not box.may_open:
        wrong.append(f"opened outside: {', '.join(sorted(opened))}")
    wrong += [f"asked the network: {request}" for request in asked[:1]]
    wrong += _changes(box, before)
    beyond = [one.cpu - box.baseline(one.step).cpu for one in done]
    return Verdict(
        tuple(done), tuple(dict.fromkeys(wrong)), max([0.0, *beyond]), max([0.0, *(one.peak for one in done)])
    )


def _costs(one: Done, usual: Done) -> list[str]:
    cpu, most = one.cpu - usual.cpu, max(one.step.megabytes, usual.peak + 100)
    verb = one.step.words[0]
    found = []
    if not one.in_time:
        found.append(f"{verb}: did not end")
    elif one.code < 0:
        found.append(f"{verb}: ended by {signal.Signals(-one.code).name}")
    if cpu > one.step.seconds:
        found.append(f"{verb}: {cpu:.1f} s of CPU more than harmless input")
    if one.peak > most:
        found.append(f"{verb}: {one.peak:.0f} MB of memory")
    return found


def _shown(one: Done, box: Box) -> list[str]:
    """What a command said that it should not have said."""
    verb, found = one.step.words[0], []
    if "Traceback (most recent call last)" in one.output:
        last = re.findall(r"^[A-Za-z_][\w.]*(?:: .*)?$", one.output, re.MULTILINE)
        found.append(f"{verb}: a traceback: {(last or ['?'])[-1].replace(str(box.root), '')[:110]}")
    if one.code > 0 and not one.output.strip():
        found.append(f"{verb}: failed without a word")
    if re.search(r"^ ?Usage: ", one.output, re.MULTILINE) and one.code == 2:
        found.append(f"{verb}: the case misuses the command line")
    if control := _CONTROL.search(one.output):
        found.append(f"{verb}: shows the control character U+{ord(control[0]):04X}")
    if _holds_secret(one.output.encode(), box):
        found.append(f"{verb}: shows the secret")
    return found


def _holds_secret(content: bytes, box: Box) -> bool:
    """Whether some bytes hold the secret in any usual coding."""
    secret = box.secret.encode()
    coded = [base64.b64encode(b"\0" * shift + secret)[8 if shift else 0 : -4] for shift in range(3)]
    ways = (secret, box.secret.encode("utf-16-le"), secret.hex().encode(), *coded)
    return any(way in content for way in ways)


Snapshot = dict[str, tuple[Any, ...]]


def _snapshot(box: Box) -> Snapshot:
    """Every file of the sandbox: what it is, and its content where that is outside."""
    found: Snapshot = {}
    for folder, folders, files in os.walk(box.root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            link = os.readlink(path) if path.is_symlink() else ""
            regular = stat.S_ISREG(status.st_mode)
            inside_outside = regular and box.outside in path.parents
            content = path.read_bytes() if inside_outside else b""
            stamp = (status.st_size, status.st_mtime_ns) if regular else ()
            found[str(path.relative_to(box.root))] = (stat.S_IFMT(status.st_mode), status.st_ino, stamp, link, content)
    return found


_WRITABLE = ("home", "cache", "tmp", "work/out")
_OURS = ("said", "result", "yes")


def _changes(box: Box, before: Snapshot) -> list[str]:
    """What was written where nothing may be, and the secret or hostile elements in what was written where it may."""
    found, written = [], 0
    after = _snapshot(box)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name) or name in _OURS:
            continue
        path = box.root / name
        if path == box.marker:
            found.append("ran: the marker exists")
            continue
        if not any(name == place or name.startswith(f"{place}/") for place in _WRITABLE):
            word = "removed" if name not in after else "changed" if name in before else "written"
            found.append(f"{word} outside: {name}")
        if name in after and path.is_file() and not path.is_symlink():
            written += path.stat().st_blocks * 512
            if any(_holds_secret(content, box) for content in _contents(path)):
                found.append(f"the secret is in {name}")
            if path.suffix in (".md", ".html", ".svg"):
                found += [f"{thing} in {name}" for thing in live(path)]
        elif path.is_symlink() and _leads_out(path, box):
            found.append(f"a link out of the sandbox's own places: {name}")
    if written > MEGABYTES * 1_000_000:
        found.append(f"wrote {written / 1e6:.0f} MB")
    return found


def _leads_out(path: Path, box: Box) -> bool:
    return os.path.realpath(path).startswith(f"{box.outside}/")


def _contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what they hold packed: of zstd and gzip files, and of ledgers."""
    with path.open("rb") as file:
        yield file.read(_SCANNED)
    try:
        if path.suffix == ".zst":
            import zstandard

            with path.open("rb") as file:
                yield zstandard.ZstdDecompressor().stream_reader(file).read(_SCANNED)
        elif path.suffix == ".gz":
            with gzip.open(path) as packed:
                yield packed.read(_SCANNED)
        elif path.suffix == ".duckdb":
            yield _rows(path)
    except Exception:  # a file that cannot be read holds nothing that anybody else could read
        return


def _rows(path: Path) -> bytes:
    """All base tables of a ledger as text: strings are compressed in the file."""
    import duckdb

    with duckdb.connect(str(path), read_only=True, config={"enable_external_access": "false"}) as connection:
        names = connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
        every = [connection.execute(f'FROM "{schema}"."{name}"').fetchall() for schema, name in names]
    return json.dumps(every, default=str, ensure_ascii=False).encode()


def unplant(*links: Path) -> None:
    """Remove links that a case has planted where outputs lie; what the program put in their place stays to be looked at."""
    for link in links:
        if link.is_symlink():
            link.unlink()


def remove(box: Box) -> None:
    """Delete a sandbox, folders without permissions and all."""
    for folder, _, _ in os.walk(box.root):
        os.chmod(folder, 0o700)
    shutil.rmtree(box.root, ignore_errors=True)
