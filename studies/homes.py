"""Runs in folders of their own, and what one of them left in comparison with one that nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sparsebench.ledger.query import Table, session
from sparsebench.records import read_cell, statuses

ROOT = Path(__file__).parents[1]
MANIFEST = """\
# A real model of 1.2 million weights, all kinds of cells, one's own data, and makings that read text, train, or do neither.
version: 1
models:
  - {{name: g2p-t5, source: "path:{root}/examples/g2p/model", family: encoder-decoder, dtype: float32}}
variants:
  - {{prune: magnitude, sparsity: 0.9}}
  - {{prune: wanda, sparsity: 0.5}}
  - {{quantize: int8}}
  - - {{prune: magnitude, sparsity: 0.5}}
    - {{recover: distill, tokens: 6000, length: 32, batch: 4, held_out: 0.2, evaluations: 6}}
calibration: {{source: "path:{folder}/text.jsonl", field: text, samples: 4, length: 32}}
benchmarks:
  encoder-decoder:
    - {{task: g2p, limit: 20}}
    - {{task: generation, source: "path:{folder}/questions.jsonl", length: 4}}
runtime:
  engines: {engine}
  ranks: {ranks}
  workloads: {{batch: 1, prompt: 8, generate: 2}}
  select: {{prune: wanda}}
  samples: 4
storage: {{formats: [dense, packed], keep: packed}}
"""
TEXT = "the cat sat on the mat and the dog ran to the small red house by the big blue tree " * 8
MARK = "SPARSEBENCH_ATTACK"
"""An environment variable that all processes of a round have, so that those which outlive their parents are found."""
ALIVE_SECONDS = 8.0
SAME = {
    "scores": "task, metric, score, stderr, n",
    "outcomes": "position, doc_id, value",
    "sizes": "format, bytes, prunable_bytes, round_trip",
    "storage": "prunable, nonzero, raw_value_bound, entropy_bound",
    "structure_tensors": "name, count, zeros, mean, std, rms, min, max, histogram",
    "makings": "prunable, zeros, parameters, achieved, bits, relative_error",
    "records": "content",
}
"""By table of the ledger, what has to be the same of the cells that are done, whatever happened."""
DONE = "SELECT key, record_id FROM base.records WHERE status = 'done'"
ONE_EACH = ("cells", "variants", "scores", "sizes", "structure", "latency", "memory", "results")
"""Views that must have as many rows as in the undisturbed run."""


@dataclass
class Home:
    """The folders of a run that nobody else uses."""

    folder: Path
    manifest: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.folder / "ledger/attack.duckdb"

    @property
    def said(self) -> Path:
        """What the last run has said."""
        return self.folder / "said.txt"

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start a run."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        own = {
            "SPARSEBENCH_CACHE": "cache", "HF_HOME": "hf", "XDG_CACHE_HOME": "xdg", "TMPDIR": "tmp", "TRITON_CACHE_DIR": "xdg",
        }  # fmt: skip
        paths = {name: str(self.folder / below) for name, below in own.items()}
        words = ["run", str(self.manifest), "--ledger", str(self.ledger), "--jobs", "2", *more]
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sparsebench", *words],
                cwd=ROOT,
                env={**os.environ, **paths, MARK: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                # A shell's background jobs are deaf to Ctrl-C, and so would be what they start.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return self.process

    def end(self) -> None:
        """Kill the run and all that it started."""
        if self.process:
            self.process.kill()
            self.process.wait()
        for one in self.others():
            one.kill()

    def statuses(self) -> dict[str, str]:
        """The status of every cell that has a record."""
        return statuses(self.ledger.parent / "records")

    def reason(self, key: str, status: str) -> str:
        """Why a cell is not done."""
        return str(read_cell(self.ledger.parent / "records", key, status).get("reason"))

    def files(self) -> set[str]:
        """What is there, but for logs, and for caches of libraries, whose names hold this folder's or what was asked last."""
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))
        return {name for name in found if not name.startswith(("ledger/logs/", "xdg/", "cache/datasets/"))}

    def others(self) -> list[psutil.Process]:
        """Processes of this round that no living run has below it."""
        ours = set()
        if self.process and self.process.poll() is None:
            with contextlib.suppress(psutil.Error):
                run = psutil.Process(self.process.pid)
                ours = {run, *run.children(recursive=True)}
        return [one for one in psutil.process_iter() if one not in ours and _marked(one, str(self.folder))]

    def outliving(self) -> list[str]:
        """Those that are still there after as long as they may take to end; what they are."""
        until = time.monotonic() + ALIVE_SECONDS
        while (left := self.others()) and time.monotonic() < until:
            time.sleep(0.1)
        return [f"{one.pid} {' '.join(command_of(one))[:100]}" for one in left]


def _marked(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    return False


def command_of(process: psutil.Process) -> list[str]:
    """The words that started a process; none where it is gone."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def undisturbed(folder: Path, ranks: int) -> tuple[Home, float]:
    """A run that nobody kills, and its seconds; the one that lies in ``folder`` from before, where there is one.

    Raises SystemExit where it does not end well: nothing can be learnt then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"text": f"{number} {TEXT}"} for number in range(60)]
    questions = [{"input": word, "target": word.upper()} for word in TEXT.split()[:10]]
    for name, rows in (("text.jsonl", texts), ("questions.jsonl", questions)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = "hf" if ranks == 1 else "deepspeed"
    manifest, took = folder / "attack.yaml", folder / "seconds"
    manifest.write_text(MANIFEST.format(root=ROOT, folder=folder.resolve(), ranks=ranks, engine=engine))
    if took.is_file():
        return Home((folder / "undisturbed").resolve(), manifest), float(took.read_text())
    home, started = begin(folder / "undisturbed", manifest), time.monotonic()
    if home.start().wait():
        raise SystemExit(f"the undisturbed run failed; nothing can be learnt:\n{home.said.read_text()}")
    seconds = time.monotonic() - started
    took.write_text(f"{seconds:.1f}")
    return home, seconds


def begin(folder: Path, manifest: Path, like: Home | None = None, kept: Sequence[str] = ("wheels",)) -> Home:
    """An empty home, but for what ``like`` has fetched (``wheels``) or also compiled (``torch_extensions``)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in kept if like else ():
        if (there := like.folder / "cache" / name).is_dir():  # with one rank nothing is compiled
            shutil.copytree(there, folder / "cache" / name)
    return Home(folder.resolve(), manifest)


def compare(home: Home, wanted: Home) -> Iterator[tuple[str, str]]:
    """What is not as in the undisturbed run, by kind."""
    with session(home.ledger) as mine, session(wanted.ledger) as theirs:
        yield from _cells(home, wanted, mine)
        for view in ONE_EACH:
            (own,), (others,) = (ask(f"SELECT count(*) FROM {view}").rows[0] for ask in (mine, theirs))
            if own != others:
                yield "lost" if own < others else "twice", f"{own} rows in {view}, not {others}"
        for held, columns in SAME.items():
            sql = f"SELECT done.key, {columns} FROM ({DONE}) AS done JOIN base.{held} USING (record_id)"
            here, there = (_grouped(ask(sql).rows) for ask in (mine, theirs))
            for key in here.keys() & there.keys():
                if here[key] != there[key]:
                    yield "wrong", f"{key}: other {held} than undisturbed"
    for name in sorted(home.files() - wanted.files()):
        yield "left behind", name
    for name in sorted(wanted.files() - home.files()):
        yield "lost", f"no file {name}"


def _cells(home: Home, wanted: Home, ask: Callable[[str], Table]) -> Iterator[tuple[str, str]]:
    """Which cells have no result, and which more than one."""
    found, asked = home.statuses(), wanted.statuses()
    done = dict(ask(f"SELECT key, count(*) FROM ({DONE}) GROUP BY key").rows)
    for key in asked:
        if found.get(key) != "done" or key not in done:
            yield "lost", f"{key}: its record is {found.get(key, 'not there')}, {done.get(key, 0)} in the ledger"
    for key, count in done.items():
        if count > 1 or key not in asked:
            yield "twice", f"{key}: {count} results" if count > 1 else f"{key}: nobody asked for it"


def _grouped(rows: Iterable[tuple[Any, ...]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for key, *values in rows:
        found.setdefault(key, set()).add(repr(values))
    return found
