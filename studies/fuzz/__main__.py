"""Mutated manifests, weight files, configurations, packed files, GGUF files, records and figures, each read in process.

    python -m studies.fuzz [--seed 0] [--count 20000] [--only NAME] [--jobs 1] [--json] [--keep DIR]

Every input must end in success or in one of sparsebench's own errors, within two seconds of CPU. Any other exception, a
process that dies, and a slower input is a failure; failures alike (by kind of input, exception and place) are shown once,
with the number that makes the first of them again: --only NAME --case NUMBER. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from studies.fuzz.judge import Outcome, counts, run, unlike
from studies.fuzz.targets import TARGETS


def main() -> int:
    """Read the inputs that were asked for; how the command ends."""
    asked = _arguments()
    started = time.monotonic()
    names = [asked.only] if asked.only else list(TARGETS)
    whole = sum(TARGETS[name].share for name in names)
    wanted = {name: range(max(1, asked.count * TARGETS[name].share // whole)) for name in names}
    if asked.case is not None:
        wanted = {name: range(asked.case, asked.case + 1) for name in names}
    found = run(wanted, asked.seed, asked.jobs, asked.keep)
    failures = unlike(found)
    seconds = time.monotonic() - started
    if asked.json:
        print(
            json.dumps(
                {"seconds": round(seconds), "counts": counts(found), "failures": list(map(asdict, failures))}, indent=1
            )
        )
    else:
        print(table(found, failures, seconds, asked.seed))
    return int(bool(failures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other inputs (default: 0)")
    parser.add_argument("--count", type=int, default=20_000, help="inputs in all (default: 20,000)")
    parser.add_argument("--only", choices=TARGETS, help="inputs of this kind alone")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="this input alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", action="store_true", help="everything that was found, as JSON")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep inputs that fail here")
    return parser.parse_args()


def table(found: list[Outcome], failures: list[Outcome], seconds: float, seed: int) -> str:
    """What a person reads."""
    words = ("success", "refused", "foreign", "slow", "died")
    lines = [f"{'kind':<10}" + "".join(f"{word:>9}" for word in words) + f"{'most CPU s':>12}"]
    for name, each in counts(found).items():
        most = max(outcome.cpu for outcome in found if outcome.target == name)
        lines.append(f"{name:<10}" + "".join(f"{each.get(word, 0):>9}" for word in words) + f"{most:>12.2f}")
    for outcome in failures:
        lines.append(f"! {outcome.target} {outcome.number}: {outcome.became}: {outcome.what}")
    cpu = sum(outcome.cpu for outcome in found)
    wrong = sum(bool(outcome.what) for outcome in found)
    lines.append(f"{len(found):,} inputs of seed {seed} in {seconds:.0f} s ({cpu:.0f} s of CPU): {wrong} failed")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
