"""How far a reader walks to follow one request for a plan: the files that run, and the climbs back to a higher floor.

    python studies/visits.py [quickstart.yaml] [--list]

A floor is a room's place in the order of imports (``tests/test_rooms.py``), so a call normally goes down. A climb is a
call site in one file that runs a function of a file on a higher floor: it was handed over as an argument. Each pair of
functions counts once; running a module's own statements, as an import does, does not count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
PACKAGE = str(ROOT / "sparsebench") + "/"


def followed(action: Callable[[], Any]) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the files of the package whose functions ran, and the calls from one file to another as (from, to)."""
    files: set[str] = set()
    calls: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not _is_function(frame.f_code):
            return
        files.add(_file(frame.f_code))
        caller = frame.f_back
        while caller and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller and _is_function(caller.f_code):
            calls.add((_name(caller.f_code), _name(frame.f_code)))

    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)
    return files, calls


def _is_function(code: CodeType) -> bool:
    return code.co_filename.startswith(PACKAGE) and code.co_name != "<module>"


def _file(code: CodeType) -> str:
    return code.co_filename.removeprefix(PACKAGE)


def _name(code: CodeType) -> str:
    return f"{_file(code)}:{code.co_qualname.replace('.<locals>', '')}"


def climbs(calls: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the calls that go to a file of a later room than the caller's."""
    from tests.test_rooms import ORDER

    def floor(name: str) -> int:
        room = name.partition(":")[0].split("/")[0].removesuffix(".py")
        return ORDER.index(room) if room in ORDER else len(ORDER)

    return sorted(call for call in calls if floor(call[1]) > floor(call[0]))


def main() -> None:
    """Print the files and climbs of one plan."""
    from sparsebench.plan.preflight import PlanRequest, prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, default=ROOT / "quickstart.yaml")
    parser.add_argument("--list", action="store_true", help="name them")
    asked = parser.parse_args()
    files, calls = followed(lambda: prepare(PlanRequest(asked.manifest, offline=True)))
    up = climbs(calls)
    across = {call for call in calls if call[0].partition(":")[0] != call[1].partition(":")[0]}
    print(f"{len(files)} files, {len(across)} calls from file to file, {len(up)} climbs to a higher floor")
    if asked.list:
        print(*sorted(files), *(f"{caller} ↑ {called}" for caller, called in up), sep="\n")


if __name__ == "__main__":
    main()
