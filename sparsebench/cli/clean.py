"""``sparsebench clean``: what of the cache can go, and why; with ``--yes`` it goes."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebench.cli.options import JSON, folder_to_read
from sparsebench.cli.output import emit_json, emit_table, note, size
from sparsebench.errors import UserError

if TYPE_CHECKING:
    from sparsebench.run.cleaning import Removable


def clean(
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="KIND",
            help="models, variants, packed, training (interrupted trainings) or leftovers; repeatable. Default: all.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="The manifest's work_dir. Default: that in the cache.",
            show_default=False,
            metavar="FOLDER",
            parser=folder_to_read,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
    as_json: JSON = False,
) -> None:
    """List the cache's files that can be removed, and why; with --yes, remove them.

    A later run can make all of them again. Downloads, ledgers and records stay,
    and so do files that a run is using.

    \b
    sparsebench clean
    sparsebench clean --only leftovers --only variants --yes
    """
    from sparsebench import sources
    from sparsebench.manifest.problems import one_of
    from sparsebench.run.cleaning import KINDS, removable

    known = [*KINDS, "leftovers"]
    if wrong := next((kind for kind in kinds or () if kind not in known), None):
        raise UserError(f"--only {wrong}: no such kind of file", one_of(known))
    found = [one for one in removable(work or sources.Cache().root / "work") if not kinds or one.kind in kinds]
    left: list[str] = []
    if yes:
        found = [one for one in found if _removed(one, left)]
    if as_json:
        rows = [{"path": str(one.path), "kind": one.kind, "bytes": one.bytes, "why": one.why} for one in found]
        emit_json({"removed": yes, "bytes": sum(one.bytes for one in found), "paths": rows})
    else:
        lines = [[size(one.bytes), one.kind, str(one.path), one.why] for one in found]
        emit_table(["size", "kind", "path", "why"], lines)
        total = Counter[str]()
        for one in found:
            total[one.kind] += one.bytes
        told = ", ".join(f"{kind} {size(count)}" for kind, count in total.items()) or "nothing"
        # Repeat --only and --work: without them the command would also remove what is not listed here.
        again = ["sparsebench", "clean", *(word for kind in kinds or () for word in ("--only", kind))]
        again += [*(["--work", str(work)] if work else ()), "--yes"]
        way = f"; to remove it: {shlex.join(again)}" if found else ""
        note(f"removed: {told}" if yes else f"can be removed: {told}{way}")
    for reason in left:
        note(reason, "red")
    if left:
        raise typer.Exit(1)


def _removed(one: Removable, left: list[str]) -> bool:
    """Remove one, and return whether that was done; a failure is added to ``left`` and does not stop the others."""
    from sparsebench.run.cleaning import remove

    try:
        return remove(one)
    except OSError as error:
        left.append(f"not removed: {error.filename or one.path}: {error.strerror or error}")
        return False
