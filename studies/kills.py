"""Kills runs at random moments, starts them again plainly, and compares what they leave with an undisturbed run.

    python -m studies.kills [--kills 50] [--ranks 1] [--seed 0] [--folder DIR]

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
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from studies.homes import ALIVE_SECONDS, Home, begin, command_of, compare, undisturbed

PARENT = {"SIGKILL": signal.SIGKILL, "Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
BELOW = "SIGKILL below"
"""What is done: signals to the run itself, and to a process that it has started, directly or not."""
POLITE = ("Ctrl-C", "SIGTERM")
SHARE, LONGEST, SPREAD = 1 / 2, 40.0, 2.0
"""The longest time to a kill, as a share of what the undisturbed run takes, and in seconds; most are much shorter. A few kills
of a long run are spread over it: their longest times together are so many times the run."""
COMPILED = ("wheels", "torch_extensions")
"""What a round takes over from the undisturbed run's cache; the first round compiles by itself."""
WRONG = ("lost", "twice", "wrong", "false failures", "alive", "left behind", "bad ends")


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
                ours = [word for word in command_of(chosen) if word.startswith("sparsebench.")]
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


def main() -> int:
    """Do what was asked for; how the command ends."""
    asked = _arguments()
    if sys.platform != "linux":
        raise SystemExit("processes that outlive their parents are found on Linux only")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to it
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    tally = attack(folder, asked.kills, asked.ranks, asked.seed)
    bad = any(tally.wrong.values())
    if not bad and not asked.folder:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}", file=sys.stderr)
    print(json.dumps(asdict(tally), indent=1))
    return int(bad)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2), help="ranks of what is timed (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="another seed kills at other moments (default: 0)")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="work here, with the undisturbed run that is there, if one is; kept"
    )
    return parser.parse_args()


def attack(folder: Path, kills: int, ranks: int = 1, seed: int = 0) -> Tally:
    """Kill runs so many times, round by round, and compare each round's end with an undisturbed run."""
    wanted, seconds = undisturbed(folder, ranks)
    print(f"undisturbed: {len(wanted.statuses())} cells in {seconds:.0f} s", file=sys.stderr, flush=True)
    longest = max(min(seconds * SHARE, LONGEST), SPREAD * seconds / kills)
    attacker = Attack(random.Random(seed), longest)
    tally = attacker.tally
    try:
        while tally.total < kills:
            # Compiling takes longer than most runs live: only a third of the kills may meet it.
            most, kept = (kills, COMPILED) if tally.rounds else (max(1, kills // 3), COMPILED[:1])
            home = begin(folder / f"round-{tally.rounds + 1}", wanted.manifest, wanted, kept)
            attacker.round(home, most)
            for kind, what in compare(home, wanted):
                tally.add(kind, [what], f"round {tally.rounds}")
            if not any(tally.wrong.values()):
                shutil.rmtree(home.folder)
    except KeyboardInterrupt:
        print("interrupted: the last round is not judged to its end", file=sys.stderr)
        home.end()
    return tally


if __name__ == "__main__":
    sys.exit(main())
