"""A hostfile, as DeepSpeed's launcher reads it: which nodes there are, and how many ranks each may run."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsebench import bounded
from sparsebench.errors import UserError

Hosts = tuple[tuple[str, int], ...]
"""Names of nodes, each with its number of ranks, in order: the first has rank 0."""
_LINE = re.compile(r"(\S{1,255})\s+slots=([1-9]\d{0,5})\s*(?:#.*)?")


def read(path: Path) -> Hosts:
    """The nodes of a hostfile: a line ``NAME slots=NUMBER`` each. Raises UserError naming the line of what is wrong."""
    found: dict[str, int] = {}
    text = bounded.read(path, UserError, bounded.MB).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            # Without what stands there: a manifest of a stranger may name any file as its hostfile.
            raise UserError(f"{path}, line {number}: no host", "write `NAME slots=NUMBER`, such as node-1 slots=4")
        if match[1] in found:
            raise UserError(f"{path}, line {number}: a second line for {match[1]}", "one line for each host")
        found[match[1]] = int(match[2])
    if not found:
        raise UserError(f"{path} names no host", "write `NAME slots=NUMBER` lines, such as node-1 slots=4")
    return tuple(found.items())


def share(known: Hosts, ranks: int) -> Hosts:
    """The first of the ``known`` nodes that hold ``ranks``, equally many on each; as few nodes as will do.

    Raises UserError where they cannot: DeepSpeed's launcher numbers ranks within nodes only if these are alike.
    """
    for nodes in range(1, len(known) + 1):
        each = ranks // nodes
        if ranks % nodes == 0 and all(slots >= each for _, slots in known[:nodes]):
            return tuple((name, each) for name, _ in known[:nodes])
    shown = ", ".join(f"{name} slots={slots}" for name, slots in known)
    raise UserError(
        f"{ranks} ranks do not fit in equal parts onto the first hosts of the hostfile ({shown})",
        "give hosts equal slots, and ask for a multiple of them",
    )


def told(hosts: Hosts) -> str:
    """``a ×2, b ×2``."""
    return ", ".join(f"{name} ×{slots}" for name, slots in hosts)


def command(hostfile: Path, hosts: Hosts, port: int | str, arguments: Sequence[str]) -> list[str]:
    """What starts ``python -m sparsebench.runtime.rank ARGUMENTS`` for every rank, by ssh, on the nodes of ``hostfile``.

    ``port`` is one of the first node, where the ranks meet.
    """
    return [
        sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--force_multi", "--launcher", "pdsh",
        "--master_addr", hosts[0][0], "--master_port", str(port), "--no_local_rank", "--module",
        "sparsebench.runtime.rank", *arguments,
    ]  # fmt: skip
