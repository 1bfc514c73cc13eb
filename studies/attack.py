"""Kills runs at random moments, starts them again plainly, and compares what they leave with an undisturbed run.

    python -m studies.attack [--kills 50] [--ranks 1 | --manifest quickstart.yaml] [--seed 0] [--folder DIR] [--json]

A round begins with an empty cache, ledger and folder for temporary files. `sparsebench run` is started again and again, and each
time something is done to it at a random moment: SIGKILL, Ctrl-C or SIGTERM to the run, or SIGKILL to one of the processes below
it (a job, a rank, a compiler). The round ends when a run does; rounds follow each other until there were enough kills.

A cell whose own process was killed is failed, and rightly so: --retry-failed then does it again. All other failures are false.
Nothing may be lost, twice or other than in the undisturbed run but for times and memory, no process may live 8 seconds
after a kill, no file be left that the undisturbed run does not leave, no run end otherwise than it says. Exit code 1 if
anything did. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sparsebench.ledger.query import Table, session
from sparsebench.records import read_cell, statuses

ROOT = Path(__file__).parent.parent
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
PARENT = {"SIGKILL": signal.SIGKILL, "Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
BELOW = "SIGKILL below"
"""What is done: signals to the run itself, and to a process that it has started, directly or not."""
POLITE = ("Ctrl-C", "SIGTERM")
SHARE, LONGEST, SPREAD = 1 / 2, 40.0, 2.0
"""The longest time to a kill, as a share of what the undisturbed run takes, and in seconds; most are much shorter. A few kills
of a long run are spread over it: their longest times together are so many times the run."""
COMPILED = ("wheels", "torch_extensions")
"""What a round takes over from the undisturbed run's cache; the first round compiles by itself."""
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
WRONG = ("lost", "twice", "wrong", "false failures", "alive", "left behind", "bad ends")


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
        return [f"{one.pid} {' '.join(_words(one))[:100]}" for one in left]


def _marked(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    return False


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


@dataclass
class Tally:
    """What was done, how often by kind, and everything that went wrong, in sentences by kind."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in WRONG})
    runs: int = 0
    rounds: int = 0
    honest: int = 0

    @property
    def total(self) -> int:
        """How many kills there were."""
        return sum(self.kills.values())

    def add(self, kind: str, found: list[str], where: str) -> None:
        """Note what went wrong, and where."""
        self.wrong[kind] += [f"{where}: {what}" for what in found]
        for what in found:
            print(f"  ! {kind}: {where}: {what}", file=sys.stderr, flush=True)


@dataclass
class Attack:
    """Rounds of kills. ``longest`` is how many seconds a run is left alone at most before the next kill."""

    random: random.Random
    longest: float
    tally: Tally = field(default_factory=Tally)

    def round(self, home: Home, most: int) -> None:
        """Kill and start again until a run ends with everything done, or there were ``most`` kills in all and it ends.

        A run is started plainly; once, where the one before ended with cells that had to fail, with --retry-failed.
        """
        self.tally.rounds += 1
        more: tuple[str, ...] = ()
        while True:
            last = self.tally.total == most
            ended = self.run(home, most, *more)
            left = any(status != "done" for status in home.statuses().values())
            if ended and (not left or (last and more)):
                return
            more = ("--retry-failed",) if ended else ()

    def run(self, home: Home, most: int, *more: str) -> bool:
        """One run with what is done to it, ``most`` kills at most; whether it ended by itself."""
        self.tally.runs += 1
        before = {key for key, status in home.statuses().items() if status == "failed"}
        process, hit, where, ended = home.start(*more), False, f"run {self.tally.runs}", False
        while not ended:
            left = most - self.tally.total
            try:
                process.wait(self.longest * self.random.random() ** 2 if left else None)
                break
            except subprocess.TimeoutExpired:
                pass
            kind = self.random.choice([*PARENT, BELOW])
            what = self.below(process) if kind == BELOW else self.itself(process, PARENT[kind])
            if what is None:
                continue
            hit, ended = hit or kind == BELOW, kind != BELOW
            self.tally.kills[kind] += 1
            where = f"kill {self.tally.total}, {kind} of {what}, {len(home.statuses())} records"
            print(where, file=sys.stderr, flush=True)
            self.tally.add("alive", home.outliving(), where)
        process.kill()  # nothing, unless a signal did not end it
        if ended:  # it may also have ended by itself at that very moment
            expected = {-PARENT[kind], 0, 1, *([130] if kind in POLITE else [])}
        else:
            expected = {0, 1} if any(status in ("failed", "skipped") for status in home.statuses().values()) else {0}
            self.tally.add("alive", home.outliving(), where)
        self.end(home, process.wait(), expected, where)
        self.failures(home, before, hit, where)
        return not ended

    def itself(self, process: subprocess.Popen[bytes], number: int) -> str:
        """Send a signal to a run, and let it end."""
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ALIVE_SECONDS)
        return "the run"

    def below(self, process: subprocess.Popen[bytes]) -> str | None:
        """Kill one of the processes below a run; what it was. None where there is none, or it had just ended."""
        with contextlib.suppress(psutil.Error):
            chosen = self.random.choice(psutil.Process(process.pid).children(recursive=True) or [None])
            if chosen is not None:
                ours = [word for word in _words(chosen) if word.startswith("sparsebench.")]
                name = ours[-1] if ours else chosen.name()
                chosen.kill()
                return name
        return None

    def failures(self, home: Home, before: set[str], hit: bool, where: str) -> None:
        """Judge what has failed in a run: where nothing below it was ``hit`` nothing may, else only what names the kill."""
        new = {key for key, status in home.statuses().items() if status == "failed"} - before
        reasons = {key: home.reason(key, "failed") for key in new}
        false = [f"{key}: {reason}" for key, reason in reasons.items() if not hit or "SIGKILL" not in reason]
        self.tally.honest += len(new) - len(false)
        self.tally.add("false failures", false, where)

    def end(self, home: Home, code: int, expected: set[int], where: str) -> None:
        """Judge how a run ended."""
        said = home.said.read_text(errors="replace")
        # Ctrl-C in Python's own start, before a line of ours: an editable install has it import a few modules there.
        if code not in expected or ("Traceback" in said and "init_import_site" not in said):
            last = " | ".join(said.strip().splitlines()[-3:])
            self.tally.add("bad ends", [f"exit code {code}: {last}"], where)


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


def main() -> int:
    """Do what was asked for; how the command ends."""
    asked = _arguments()
    if sys.platform != "linux":
        raise SystemExit("processes that outlive their parents are found on Linux only")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to it
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="attack-"))
    started = time.monotonic()
    wanted, seconds = undisturbed(folder, asked.ranks, asked.manifest)
    print(f"undisturbed: {len(wanted.statuses())} cells in {seconds:.0f} s", file=sys.stderr, flush=True)
    longest = max(min(seconds * SHARE, LONGEST), SPREAD * seconds / asked.kills)
    attack = Attack(random.Random(asked.seed), longest)
    tally = attack.tally
    try:
        while tally.total < asked.kills:
            # Compiling takes longer than most runs live: only a third of the kills may meet it.
            most, kept = (asked.kills, COMPILED) if tally.rounds else (asked.kills // 3, COMPILED[:1])
            home = begin(folder / f"round-{tally.rounds + 1}", wanted.manifest, wanted, kept)
            attack.round(home, most)
            for kind, what in compare(home, wanted):
                tally.add(kind, [what], f"round {tally.rounds}")
            if not any(tally.wrong.values()):
                shutil.rmtree(home.folder)
    except KeyboardInterrupt:
        print("interrupted: the last round is not judged to its end", file=sys.stderr)
        home.end()
    bad = any(tally.wrong.values())
    if not bad and not asked.folder:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}", file=sys.stderr)
    print(as_json(tally) if asked.json else table(tally, asked, time.monotonic() - started))
    return int(bad)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="how many (default: 50)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ranks", type=int, default=1, choices=(1, 2), help="ranks of what is timed (default: 1)")
    what.add_argument("--manifest", type=Path, metavar="FILE", help="attack runs of this one (default: a small one)")
    parser.add_argument("--seed", type=int, default=0, help="another seed kills at other moments (default: 0)")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="work here, beside an undisturbed run from before if there is one; kept",
    )
    parser.add_argument("--json", action="store_true", help="everything that was found, as JSON")
    return parser.parse_args()


def undisturbed(folder: Path, ranks: int, manifest: Path | None = None) -> tuple[Home, float]:
    """A run that nobody kills, and its seconds; the one that lies in ``folder`` from before, where there is one.

    Raises SystemExit where it does not end well: nothing can be learnt then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"text": f"{number} {TEXT}"} for number in range(60)]
    questions = [{"input": word, "target": word.upper()} for word in TEXT.split()[:10]]
    for name, rows in (("text.jsonl", texts), ("questions.jsonl", questions)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = "hf" if ranks == 1 else "deepspeed"
    own, took = folder / "attack.yaml", folder / "seconds"
    own.write_text(MANIFEST.format(root=ROOT, folder=folder.resolve(), ranks=ranks, engine=engine))
    manifest = manifest.resolve() if manifest else own
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
        shutil.copytree(like.folder / "cache" / name, folder / "cache" / name)
    return Home(folder.resolve(), manifest)


def table(tally: Tally, asked: argparse.Namespace, seconds: float) -> str:
    """What a person reads: Markdown."""
    kinds = [*PARENT, BELOW]
    heads = ["ranks", "kills", *kinds, "rounds", "failed rightly", *WRONG]
    counts = [asked.ranks, tally.total, *(tally.kills[kind] for kind in kinds), tally.rounds, tally.honest]
    row = [*counts, *(len(tally.wrong[kind]) for kind in WRONG)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", f"| {' | '.join(map(str, row))} |"]
    for kind, found in tally.wrong.items():
        lines += [f"! {kind}: {what}" for what in found]
    return "\n".join([*lines, f"seed {asked.seed}, {tally.runs} runs, {seconds:.0f} s"])


def as_json(tally: Tally) -> str:
    """Everything."""
    return json.dumps(
        {"kills": tally.kills, "rounds": tally.rounds, "runs": tally.runs, "wrong": tally.wrong}, indent=1
    )


if __name__ == "__main__":
    sys.exit(main())
