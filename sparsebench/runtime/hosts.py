"""A hostfile, as DeepSpeed's launcher reads it: which nodes there are, how many ranks each may run, and what starts them."""

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
"""By program that starts many copies of another: the variables that number a copy, and that say how many there are."""
NUMBERED = ("RANK", "LOCAL_RANK")
"""What torch reads; of another launcher's, they would be the parent's own."""


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


def refuse_copies() -> None:
    """Raise UserError in every copy of this program but the first, where srun, torchrun or mpirun has started several.

    This program starts its ranks itself: the copies would all do the same work, beside each other.
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
    """What starts ranks on other nodes: ``srun`` within an allocation of SLURM's, else ``pdsh``."""
    return "srun" if "SLURM_JOB_ID" in os.environ else "pdsh"


def text(hosts: Hosts) -> str:
    """The file that tells the launcher of the nodes: DeepSpeed's hostfile, or for srun a line for each rank, in order."""
    if launcher() == "srun":
        return "".join(f"{name}\n" * slots for name, slots in hosts)
    return "".join(f"{name} slots={slots}\n" for name, slots in hosts)


def command(hostfile: Path, hosts: Hosts, port: int | str, arguments: Sequence[str]) -> list[str]:
    """What starts ``python -m sparsebench.runtime.rank ARGUMENTS`` for each rank on ``hosts``; their ``text`` is in ``hostfile``.

    ``port`` is one of the first node, where the ranks meet.
    """
    if launcher() == "srun":
        ranks, each = sum(slots for _, slots in hosts), hosts[0][1]
        meeting = {"MASTER_ADDR": hosts[0][0], "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_SIZE": each}
        # Each rank takes its share of the node's cores itself, and its GPU by its number there. --overlap: the program that
        # calls srun may hold the same cores. Options override what the batch script asked for by variables.
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
