"""What becomes of each input, in processes that may die of one."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

from studies.fuzz.targets import TARGETS, Target

LIMIT, GIVEN_UP = 2.0, 20.0
"""Seconds of CPU that an input may take, and those after which it is ended."""
CHUNK = 100


@dataclass(frozen=True)
class Outcome:
    """What became of one input: success, refused, foreign, slow or died; ``what`` says it of a failure."""

    target: str
    number: int
    became: str
    cpu: float
    what: str = ""


class _TooLong(BaseException):
    """Nothing of the program's catches it."""


def run(wanted: dict[str, range], seed: int, jobs: int = 1, keep: Path | None = None) -> list[Outcome]:
    """What became of each input. A process that dies is named by the input that it was at, and the rest goes on in another."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    todo = [
        (name, numbers[at : at + CHUNK]) for name, numbers in wanted.items() for at in range(0, len(numbers), CHUNK)
    ]
    found: list[Outcome] = []
    try:
        while todo:
            with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_quiet) as pool:
                futures: list[tuple[str, range, Path, Future[list[Outcome]]]] = []
                for place, (name, numbers) in enumerate(todo):
                    at = home / f"at-{len(found)}-{place}"
                    futures.append((name, numbers, at, pool.submit(chunk, name, numbers, seed, home, at, keep)))
                begun = any(at.exists() for *_, at, _ in futures)
                todo = []
                for name, numbers, at, future in futures:
                    try:
                        found += future.result()
                    except BrokenProcessPool:
                        done = (
                            [Outcome(**json.loads(line)) for line in at.read_text().splitlines()] if at.exists() else []
                        )
                        found += done
                        rest = numbers[len(done) :]
                        if rest and (at.exists() or not begun):
                            found.append(Outcome(name, rest[0], "died", 0.0, "the process died"))
                            rest = rest[1:]
                        if rest:
                            todo.append((name, rest))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return found


def _quiet() -> None:
    """What libraries say of each of thousands of inputs helps nobody."""
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_OFFLINE"] = "1"


_MADE: dict[tuple[str, Path], Target] = {}


def chunk(name: str, numbers: range, seed: int, home: Path, at: Path, keep: Path | None) -> list[Outcome]:
    """Some inputs of one kind; ``at`` is a file that tells of each as soon as it is done."""
    key = (name, home)
    if key not in _MADE:
        _MADE[key] = made(name, home / f"{name}-{os.getpid()}")
    target, found = _MADE[key], []
    with at.open("w") as told:
        for number in numbers:
            given = target.mutated(Random(f"{seed} {name} {number}"))
            outcome = one(name, number, target, given)
            found.append(outcome)
            told.write(json.dumps(asdict(outcome)) + "\n")
            told.flush()
            if keep and outcome.what:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{number}").write_bytes(given)
    return found


def made(name: str, folder: Path) -> Target:
    """A target that has read a harmless input. Raises RuntimeError where that is refused: nothing can be learnt then."""
    from sparsebench.errors import SparsebenchError

    target = TARGETS[name](folder)
    try:
        target.read(target.harmless())
    except SparsebenchError as error:
        raise RuntimeError(f"{name}: harmless input is not taken: {error}") from error
    return target


def one(name: str, number: int, target: Target, given: bytes) -> Outcome:
    """What becomes of one input."""
    from sparsebench.errors import SparsebenchError

    def stop(*_: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGPROF, stop)
    start, became, what = time.process_time(), "success", ""
    signal.setitimer(signal.ITIMER_PROF, GIVEN_UP)
    try:
        target.read(given)
    except SparsebenchError as error:
        became, what = "refused", "" if str(error).strip() else "an error of ours that says nothing"
    except _TooLong as error:
        became, what = "slow", _place(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        became, what = "foreign", f"{type(error).__name__}: {' '.join(str(error).split())[:120]} at {_place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    cpu = time.process_time() - start
    if cpu > LIMIT and became in ("success", "refused"):
        became, what = "slow", f"{cpu:.1f} s of CPU"
    return Outcome(name, number, became, cpu, what)


def _place(error: BaseException) -> str:
    """Our line nearest to where it was raised, and that line itself."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != "stop"]
    ours = [frame for frame in frames if "sparsebench" in Path(frame.filename).parts] or frames
    names = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1], frames[-1]))
    return " > ".join(names)


def unlike(found: list[Outcome]) -> list[Outcome]:
    """The first of all failures that are alike."""
    first: dict[tuple[str, str, str], Outcome] = {}
    for outcome in found:
        if outcome.what:
            alike = outcome.what.rpartition(" at ")[2] if outcome.became == "foreign" else outcome.became
            first.setdefault((outcome.target, outcome.what.partition(":")[0], alike), outcome)
    return list(first.values())


def counts(found: list[Outcome]) -> dict[str, dict[str, int]]:
    """How often what became of the inputs of each kind."""
    each: dict[str, Counter[str]] = {}
    for outcome in found:
        each.setdefault(outcome.target, Counter())[outcome.became] += 1
    return {name: dict(counter) for name, counter in each.items()}
