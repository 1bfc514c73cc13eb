"""``sparsebench clean``: what of the cache can go, and why; with ``--yes`` it goes."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Annotated

import typer

from sparsebench.cli.options import JSON, WORK
from sparsebench.cli.output import emit_json, emit_table, end_with, note
from sparsebench.errors import UserError
from sparsebench.manifest.problems import one_of
from sparsebench.run.workspace import WHY_REMOVABLE, Removable, removable, remove
from sparsebench.sources import Cache
from sparsebench.units import size


def clean(
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="KIND",
            help="models, variants, packed, training (interrupted trainings) or leftovers; repeatable. Default: all.",
        ),
    ] = None,
    work: WORK = None,
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
    known_kinds = [*WHY_REMOVABLE, "leftovers"]
    if unknown := next((kind for kind in kinds or () if kind not in known_kinds), None):
        raise UserError(f"--only {unknown}: no such kind of file", one_of(known_kinds))
    files = [file for file in removable(work or Cache().root / "work") if not kinds or file.kind in kinds]
    failures: list[str] = []

    def try_to_remove(file: Removable) -> bool:
        try:
            return remove(file)
        except OSError as error:  # the others are removed all the same
            failures.append(f"not removed: {error.filename or file.path}: {error.strerror or error}")
            return False

    if yes:
        files = [file for file in files if try_to_remove(file)]
    if as_json:
        rows = [{"path": str(file.path), "kind": file.kind, "bytes": file.bytes, "why": file.why} for file in files]
        emit_json({"removed": yes, "bytes": sum(file.bytes for file in files), "paths": rows})
    else:
        table = [[size(file.bytes), file.kind, str(file.path), file.why] for file in files]
        emit_table(["size", "kind", "path", "why"], table)
        kind_bytes = Counter[str]()
        for file in files:
            kind_bytes[file.kind] += file.bytes
        totals = ", ".join(f"{kind} {size(total)}" for kind, total in kind_bytes.items()) or "nothing"
        # Repeat --only and --work: without them the command would also remove what is not listed here.
        words = ["sparsebench", "clean", *(word for kind in kinds or () for word in ("--only", kind))]
        words += [*(["--work", str(work)] if work else ()), "--yes"]
        removal = f"; to remove it: {shlex.join(words)}" if files else ""
        note(f"removed: {totals}" if yes else f"can be removed: {totals}{removal}")
    end_with(failures)
