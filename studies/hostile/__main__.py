"""Hostile models, records, ledgers, figures, manifests, data files and wheels, given to the program in a sandbox.

    python -m studies.hostile [--only PATTERN] [--jobs 2] [--json] [--keep DIR] [--list]

A case fails when a file outside its sandbox's own folders was opened, written or run, when a secret or a control
character was shown, when a command took over a second of CPU more than with harmless input or over 500 MB of memory or
disk, when it had to be ended, or when it showed a traceback. Exit code 1 if any failed. Linux only, from the
repository's root. --keep leaves the sandboxes of failed cases there.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from textwrap import wrap

from studies.hostile import harmless
from studies.hostile.cases import CASES
from studies.hostile.sandbox import Box, Verdict, judge, remove

WIDTH, SHOWN = 80, 4
"""Columns of the table, and what it says of one case at most."""


def main() -> int:
    """Run the cases that were asked for; how the command ends."""
    asked = _arguments()
    chosen = [name for name in CASES if not asked.only or any(fnmatch.fnmatch(name, f"*{p}*") for p in asked.only)]
    if asked.list:
        print(*chosen, f"{len(chosen)} cases", sep="\n")
        return 0
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        make = baseline(folder)
        if not asked.json:
            print(f"{'case':<48} {'became':<9}{'CPU s':>7}{'MB':>6}{'code':>6}")
        with ThreadPoolExecutor(asked.jobs) as pool:
            work = [
                (name, pool.submit(run, make, folder / str(place), name, asked.keep))
                for place, name in enumerate(chosen)
            ]
            found = {}
            for name, future in work:
                found[name] = future.result()
                if not asked.json:
                    print(row(name, found[name]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - started
    print(as_json(found, seconds) if asked.json else totals(found, seconds))
    return int(any(verdict.wrong for verdict in found.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="cases whose name holds this; * and ? fit anything"
    )
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    parser.add_argument("--json", action="store_true", help="everything that was found, as JSON")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the sandboxes of failed cases here")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    return parser.parse_args()


def baseline(folder: Path) -> Callable[[Path], Box]:
    """What makes a sandbox that begins with compiled kernels and a ledger, and knows what harmless input costs."""
    box = Box(folder / "harmless")
    verdict = judge(box, harmless.commands(box))
    failed = next((done for done in verdict.done if done.code), None)
    if verdict.wrong or failed:
        said = f"{' '.join(failed.step.words)}\n{failed.output}" if failed else ""
        raise SystemExit("\n".join(["harmless input is not taken; nothing can be learnt:", *verdict.wrong, said]))
    template = folder / "template"
    shutil.copytree(box.root / "cache/native", template / "cache/native")
    shutil.copy(box.out / "ledger.duckdb", template)
    remove(box)
    return partial(Box, template=template, baselines={done.step.like: done for done in verdict.done})


def run(make: Callable[[Path], Box], folder: Path, name: str, keep: Path | None) -> Verdict:
    """One case in a sandbox of its own; once more where nothing but CPU was wrong, which other programs inflate."""
    verdict = _once(make(folder / "first"), name, keep)
    if verdict.wrong and all("of CPU more" in problem for problem in verdict.wrong):
        verdict = min(verdict, _once(make(folder / "again"), name, keep), key=lambda one: one.cpu)
    return verdict


def _once(box: Box, name: str, keep: Path | None) -> Verdict:
    try:
        verdict = judge(box, CASES[name](box))
        if verdict.wrong and keep:
            _keep(box, keep / "".join(letter if letter.isalnum() else "-" for letter in name), verdict)
        return verdict
    except Exception as error:  # one broken case must neither hide nor end the others
        return Verdict((), (f"the case itself is broken: {error!r}",), 0.0, 0.0)
    finally:
        remove(box)


def _keep(box: Box, target: Path, verdict: Verdict) -> None:
    """Copy a sandbox, without FIFOs, with what was said in it."""

    def fifos(at: str, names: list[str]) -> set[str]:
        return {name for name in names if Path(at, name).is_fifo() and not Path(at, name).is_symlink()}

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(box.root, target, symlinks=True, ignore=fifos)
    said = (f"$ {' '.join(done.step.words)}\n{done.output}" for done in verdict.done)
    (target / "output.txt").write_text("\n".join(said))


def row(name: str, verdict: Verdict) -> str:
    """One line of the table, and one for each thing that went wrong."""
    code = verdict.done[-1].code if verdict.done else ""
    lines = [f"{name[:48]:<48} {verdict.word:<9}{verdict.cpu:7.1f}{verdict.peak:6.0f}{code:>6}"]
    more = len(verdict.wrong) - SHOWN
    for problem in (*verdict.wrong[:SHOWN], *([f"and {more} more: --json tells them"] if more > 0 else [])):
        lines += wrap(problem, WIDTH, initial_indent="    ! ", subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join(lines)


def totals(found: dict[str, Verdict], seconds: float) -> str:
    """The last line."""
    words = Counter(verdict.word for verdict in found.values())
    each = ", ".join(f"{words[word]} {word}" for word in ("refused", "harmless", "FAILED"))
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    return f"{len(found)} cases in {seconds:.0f} s ({took.ru_utime + took.ru_stime:.0f} s of CPU): {each}"


def as_json(found: dict[str, Verdict], seconds: float) -> str:
    """Everything, with what each command said last."""
    cases = [
        {
            "case": name, "became": verdict.word, "cpu_s": round(verdict.cpu, 2), "peak_mb": round(verdict.peak),
            "wrong": verdict.wrong,
            "commands": [
                {"words": done.step.words, "code": done.code, "cpu_s": round(done.cpu, 2), "peak_mb": round(done.peak),
                 "said": done.output[-600:]} for done in verdict.done
            ],
        } for name, verdict in found.items()
    ]  # fmt: skip
    return json.dumps({"seconds": round(seconds), "cases": cases}, indent=1)


if __name__ == "__main__":
    sys.exit(main())
