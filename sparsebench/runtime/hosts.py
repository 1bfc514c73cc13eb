"""Reads a hostfile as DeepSpeed's launcher does: nodes, and how many ranks each may run. Builds the launch command."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsebench import bounded
from sparsebench.errors import UserError

Hosts = tuple[tuple[str, int], ...]
"""Names of nodes, each with its number of ranks, in order: the first has rank 0."""
_LINE = re.compile(r"(\S{1,255})\s+slots=([1-9]\d{0,5})\s*(?:#.*)?")
COPIES = {
    "srun": ("SLURM_PROCID", "SLURM_NTASKS"),
    "torchrun": ("RANK", "WORLD_SIZE"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}
"""For each program that starts many copies of another: the variables with a copy's number and the count of copies."""
NUMBERED = ("RANK", "LOCAL_RANK")
"""The variables with a rank's numbers that torch reads; srun's ranks must not inherit the parent's own."""


def read(path: Path) -> Hosts:
    """Return the nodes of a hostfile, one line ``NAME slots=NUMBER`` each. Raises UserError with the wrong line."""
    found: dict[str, int] = {}
    text = bounded.read(path, UserError, bounded.MB).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            # The line itself is not shown: a stranger's manifest may name any file as its hostfile.
            raise UserError(f"{path}, line {number} is not of the form NAME slots=NUMBER", "such as node-1 slots=4")
        if match[1] in found:
            raise UserError(f"{path}, line {number}: a second line for {match[1]}", "one line for each host")
        found[match[1]] = int(match[2])
    if not found:
        raise UserError(f"{path} names no host", "write `NAME slots=NUMBER` lines, such as node-1 slots=4")
    return tuple(found.items())


def share(known: Hosts, ranks: int) -> Hosts:
    """Return the fewest nodes, from the front of ``known``, that hold ``ranks`` in equal numbers.

    Raises UserError where none do: DeepSpeed's launcher numbers ranks within nodes only if all nodes have equally many.
    """
    for nodes in range(1, len(known) + 1):
        each = ranks // nodes
        if ranks % nodes == 0 and all(slots >= each for _, slots in known[:nodes]):
            return tuple((name, each) for name, _ in known[:nodes])
    shown = ", ".join(f"{name} slots={slots}" for name, slots in known)
    raise UserError(
        f"{ranks} ranks cannot be split equally over the first hosts of the hostfile ({shown})",
        "give hosts equal slots, and ask for a multiple of them",
    )


def told(hosts: Hosts) -> str:
    """Return the hosts in words: ``a ×2, b ×2``."""
    return ", ".join(f"{name} ×{slots}" for name, slots in hosts)


def refuse_copies() -> None:
    """Raise UserError in every copy of this program but the first, where srun, torchrun or mpirun has started several.

    This program starts its ranks itself: the copies would all do the same work at the same time.
    """
    for name, (rank, count) in COPIES.items():
        number = os.environ.get(rank, "")
        if number.isdigit() and int(number):
            raise UserError(
                f"{name} has started this as copy {number} of {os.environ.get(count, 'several')} ({rank}={number})",
                f"start it once, without {name} or by srun --ntasks=1: it starts ranks itself; "
                f"where each copy is to do a part of its own, start it by `env -u {rank} sparsebench …`",
            )


def launcher() -> str:
    """Return the program that starts ranks on other nodes: ``srun`` within a SLURM allocation, else ``pdsh``."""
    return "srun" if "SLURM_JOB_ID" in os.environ else "pdsh"


def text(hosts: Hosts) -> str:
    """Return the text of the launcher's node file: DeepSpeed's hostfile, or for srun one line per rank, in order."""
    if launcher() == "srun":
        return "".join(f"{name}\n" * slots for name, slots in hosts)
    return "".join(f"{name} slots={slots}\n" for name, slots in hosts)


def command(hostfile: Path, hosts: Hosts, port: int | str, arguments: Sequence[str]) -> list[str]:
    """Return the command that starts ``python -m sparsebench.runtime.rank ARGUMENTS`` for each rank on ``hosts``.

    ``hostfile`` holds ``text(hosts)``; ``port`` is a port of the first node, where the ranks meet.
    """
    if launcher() == "srun":
        ranks, each = sum(slots for _, slots in hosts), hosts[0][1]
        meeting = {"MASTER_ADDR": hosts[0][0], "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_SIZE": each}
        # Each rank takes its share of the node's cores itself, and its GPU by its number there. --overlap: the program
        # that calls srun may hold the same cores. Options override what the batch script set by variables.
        return [
            "env", *(word for name in NUMBERED for word in ("-u", name)), f"SLURM_HOSTFILE={hostfile}",
            *(f"{name}={value}" for name, value in meeting.items()),
            "srun", f"--nodes={len(hosts)}", f"--ntasks={ranks}", f"--ntasks-per-node={each}", "--distribution=arbitrary",
            "--export=ALL", "--overlap", "--cpu-bind=none", "--kill-on-bad-exit=1", "--label",
            sys.executable, "-u", "-m", "sparsebench.runtime.rank", *arguments,
        ]  # fmt: skip
    return [
        sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--force_multi", "--launcher", "pdsh",
        "--master_addr", hosts[0][0], "--master_port", str(port), "--no_local_rank", "--module",
        "sparsebench.runtime.rank", *arguments,
    ]  # fmt: skip
