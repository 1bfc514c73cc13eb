"""Records: what a run leaves of each cell, from which a ledger is made. ``run`` writes them, ``ledger`` reads them.

A finished cell leaves one file, ``<key>.<status>.json``, and each run its plan, ``plan-<manifest>.json``. The status is
in the name so that planning reads no files. A file appears whole or not at all, and a record with another status
replaces the old one. To share them, files may be compressed (zstd), or bundled, one record a line. ``provenance`` says
what a record tells of its making.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import zstandard

from sparsebench import bounded, environment, provenance
from sparsebench.errors import LedgerError, RecordError, SparsebenchError, UserError
from sparsebench.paths import create, partial_of, write_whole
from sparsebench.plan.cells import Cell
from sparsebench.plan.stages import is_timed

FORMAT = 2
"""The record format that this program writes and reads."""
STATUSES = ("done", "failed", "unsupported", "skipped")
SUFFIXES = (".json", ".json.zst", ".jsonl.zst")
_LEVEL = 19
_WAY_OUT = "copy it again, or remove it; if it stays so, distrust where it comes from"
_NEEDED = {
    "cell": ("cell_id", "key", "stage", "status", "variant", "started_at"),
    "plan": ("manifest", "written_at", "cells"),
}


@dataclass(frozen=True)
class CellOutcome:
    """How a cell ended. ``reason`` says why, for every status but ``done``; ``seconds`` is the cell's own time.

    ``content`` is the checksum of the weights that it was measured on, ``dtype`` the precision that it ran in.
    """

    status: str
    result: dict[str, Any] | None = None
    reason: str | None = None
    started_at: datetime | None = None
    seconds: float = 0.0
    content: str = ""
    dtype: str = ""


def record_key(cell: Cell, device: str) -> str:
    """Return what a cell's record is filed under: its id and, for a timed cell, the id of the place it holds for."""
    return f"{cell.id}-{environment.place(device)['id']}" if is_timed(cell.stage) else cell.id


def make(cell: Cell, manifest: str, outcome: CellOutcome, device: str, origin: str = "") -> dict[str, Any]:
    """Return the record of one cell that ran on a resolved ``device`` for the workspace ``origin``, as it is stored."""
    started = outcome.started_at or datetime.now(UTC)
    record = {
        "format": FORMAT,
        **_asked(cell, device, cell.variant.record()),
        "status": outcome.status,
        "reason": outcome.reason,
        "manifest": manifest,
        "origin": origin,
        "content": outcome.content,
        "where": {**environment.place(device), "dtype": outcome.dtype},
        "versions": environment.versions(),
        "environment": environment.environment_record(device),
        "started_at": started.isoformat(timespec="milliseconds"),
        "seconds": round(outcome.seconds, 3),
        "result": outcome.result,
    }
    return provenance.sealed(record)


def write(folder: Path, record: dict[str, Any]) -> Path:
    """Store a record atomically, and remove an earlier one of the same cell."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['key']}.{record['status']}.json"
    write_whole(path, json.dumps(record, separators=(",", ":")))
    for status in STATUSES:
        if status != record["status"]:
            (folder / f"{record['key']}.{status}.json").unlink(missing_ok=True)
    return path


def write_plan(folder: Path, manifest: str, cells: Iterable[Cell], device: str, origin: str = "") -> dict[str, Any]:
    """Store which cells a manifest asks for, so that a ledger can be rebuilt with its manifests; return the record."""
    folder.mkdir(parents=True, exist_ok=True)
    all_cells = list(cells)
    by_id = {cell.variant.id: cell.variant for cell in all_cells}
    variants = {variant_id: variant.record() for variant_id, variant in by_id.items()}
    record = {
        "format": FORMAT,
        "kind": "plan",
        "manifest": manifest,
        "origin": origin,
        "machine": environment.hardware_class(device),
        "written_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "cells": [{**_asked(cell, device, variants[cell.variant.id]), "label": cell.label} for cell in all_cells],
    }
    record = provenance.sealed(record)
    write_whole(folder / f"plan-{manifest}.json", json.dumps(record, separators=(",", ":")))
    return record


def _asked(cell: Cell, device: str, variant: dict[str, Any]) -> dict[str, Any]:
    """Return what a cell asks; ``variant`` is its variant's record, described once for a hundred cells."""
    request = {"cell_id": cell.id, "key": record_key(cell, device), "stage": cell.stage, "settings": cell.settings}
    return request | {"variant": variant}


def statuses(folder: Path) -> dict[str, str]:
    """Return the status of every recorded cell by its ``key``, from the file names alone.

    It is ``done`` where a kill has left an older record beside that one.
    """
    if not folder.is_dir():
        return {}
    status_by_key: dict[str, str] = {}
    for name in os.listdir(folder):
        key, _, ending = name.partition(".")
        status = ending.removesuffix(".json")
        if ending.endswith(".json") and status in STATUSES and status_by_key.get(key) != "done":
            status_by_key[key] = status
    return status_by_key


def read_cell(folder: Path, name: str, status: str) -> dict[str, Any]:
    """Return the record that the cell with this ``key`` left with this status.

    Raises RecordError for a file that is no record, or that of another cell.
    """
    path = _inside(folder / f"{name}.{status}.json", folder)
    record = _parse("".join(_texts(path)), path)
    if (record.get("key"), record.get("status")) != (name, status):
        raise RecordError(f"{path}: the record of another cell", _WAY_OUT)
    return record


def origin_and_start(path: Path) -> tuple[str, datetime]:
    """Return the ``origin`` of the record in a file, and when its cell was started, in UTC as the ledger has it.

    Of a record that is as it was made, the result is not parsed: it stands last. Raises RecordError for what is no record.
    """
    text = "".join(_texts(path))
    if provenance.is_untouched(text):
        text = text.partition(',"result":')[0] + "}"
        record = bounded.parse_json(text, path, RecordError, _WAY_OUT)
    else:
        record = _parse(text, path)
    try:
        started = datetime.fromisoformat(record["started_at"])
    except (LookupError, TypeError, ValueError) as error:
        raise RecordError(f"{path}: not a record as sparsebench writes it ({error!r})", _WAY_OUT) from error
    return record.get("origin", ""), (started.astimezone(UTC) if started.tzinfo else started).replace(tzinfo=None)


def weight_checksums(folder: Path, makes: Iterable[Cell]) -> dict[str, str]:
    """Return the checksum of each made variant's weights by its id, as the records in ``folder`` of ``makes`` have it.

    Cells without a whole record of success are left out.
    """
    checksums = {}
    for cell in makes:
        with suppress(RecordError):
            checksums[cell.variant.id] = read_cell(folder, cell.id, "done")["content"]
    return checksums


def file_problem(folder: Path, cell: Cell, status: str, device: str) -> str | None:
    """Say why a cell's file does not hold what was asked of the cell; None where it does.

    Of a record that is as it was made, only the beginning is parsed: what was asked stands before the ``status``.
    """
    name = record_key(cell, device)
    try:
        text = "".join(_texts(_inside(folder / f"{name}.{status}.json", folder)))
        beginning, _, remainder = text.partition(',"status":')
        is_untouched = provenance.is_untouched(text) and remainder.startswith(f'"{status}"')
        record = json.loads(beginning + "}") if is_untouched else read_cell(folder, name, status)
        recorded = [record[word] for word in ("key", "stage", "settings")] + [record["variant"]["id"]]
    except SparsebenchError as error:
        return error.message
    except (LookupError, TypeError, ValueError) as error:
        return f"{name}.{status}.json: not a record as sparsebench writes it ({error!r})"
    expected = [name, cell.stage, json.loads(json.dumps(cell.settings)), cell.variant.id]
    return None if recorded == expected else f"{name}.{status}.json: the record of another cell"


def read(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield every record in or below ``folders`` (a file may be named too), files in order of name.

    Raises RecordError naming the file, and the line in a bundle, that is not a record of a known format.
    """
    return (record for _, record in located_records(folders))


def raise_error(error: RecordError) -> None:
    """Raise the error of a record that cannot be used: the default ``reject``."""
    raise error


Reject = Callable[[RecordError], object]
"""A function that is called with the error of each record that is left out."""


def located_records(folders: Iterable[Path], reject: Reject = raise_error) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what ``read`` does, each record with its file and line.

    ``reject`` is called with the error of what is no record, and the others are still yielded. Raises UserError for a
    folder that is not there, and LedgerError for one that leads out of itself.
    """
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: does not exist", "name a folder of records")
        for path in [folder] if folder.is_file() else _below(folder):
            texts = _texts(path)
            for number in count(1):
                where = str(path) if number == 1 else f"{path}, line {number}"
                try:
                    text = next(texts, None)
                    if text is None:
                        break
                    yield where, _parse(text, where, _longest(path))
                except RecordError as error:
                    reject(error)


def bundle(folder: Path, out: Path, manifests: Collection[str] = ()) -> int:
    """Write the records of ``folder`` into one compressed file, outcomes and raw samples included; return their number.

    With ``manifests``, write only their plans and the records of the cells that they ask for, whichever manifest made
    them. The same records give the same bytes.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(out)
    written = 0
    try:
        with create(partial, "wb") as file, zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file) as packed:
            for record in _chosen(folder, manifests, out):
                line = json.dumps(record, separators=(",", ":")).encode()
                if len(line) > bounded.JSON_BYTES:
                    raise LedgerError(
                        f"{folder}: a record of {len(line) / bounded.MB:.0f} MB is too long for a bundle",
                        "copy the folder as it is: a plan of so many cells is read from a file of its own",
                    )
                packed.write(line + b"\n")
                written += 1
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return written


def _chosen(folder: Path, manifests: Collection[str], out: Path) -> Iterator[dict[str, Any]]:
    # An earlier bundle of that name may lie in the folder.
    paths = [path for path in _below(folder) if path.absolute() != out.absolute()] if folder.is_dir() else [folder]
    if not manifests:
        yield from read(paths)
        return
    with_plans = _below(folder, "plan-*.json") if folder.is_dir() else paths
    plans = [plan for plan in read(with_plans) if plan.get("kind") == "plan" and plan["manifest"] in manifests]
    missing = set(manifests) - {plan["manifest"] for plan in plans}
    if missing:
        raise UserError(f"{folder}: no plan of {', '.join(sorted(missing))}", "see the names: sparsebench status")
    yield from plans
    wanted_ids = {cell["cell_id"] for plan in plans for cell in plan["cells"]}
    yield from (record for record in read(paths) if record.get("cell_id") in wanted_ids)


def _below(folder: Path, names: str = "*") -> list[Path]:
    """Return the record files in or below ``folder``, perhaps a stranger's. Raises LedgerError for a link out of it."""
    paths = sorted(
        path for path in folder.rglob(names) if path.name.endswith(SUFFIXES) and path.name[0] != "." and path.is_file()
    )
    return [_inside(path, folder) for path in paths]


def _inside(path: Path, folder: Path) -> Path:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LedgerError(f"{path}: a link to a file outside of {folder}", "remove it, or name that file itself")
    return path


def _texts(path: Path) -> Iterator[str]:
    try:
        if path.name.endswith(".zst"):
            yield from bounded.lines(path, RecordError)
        else:
            yield bounded.read_text(path, RecordError, _longest(path))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}", _WAY_OUT) from error


def _longest(path: Path) -> int:
    """Return how long a record may be: more for a plan, which has all cells of a manifest.

    What is compressed was short, and may not grow so much.
    """
    return bounded.PLAN_BYTES if path.name.startswith("plan-") and path.suffix == ".json" else bounded.JSON_BYTES


def _parse(text: str, where: Path | str, longest: int = bounded.JSON_BYTES) -> dict[str, Any]:
    record = bounded.parse_json(text, where, RecordError, _WAY_OUT, longest)
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise RecordError(f"{where}: not a record (no `format`)", "name a folder that holds records only")
    if record["format"] != FORMAT:
        hint = "upgrade sparsebench" if record["format"] > FORMAT else "an older sparsebench made it: run it again"
        raise RecordError(f"{where}: record format {record['format']}, this program reads {FORMAT}", hint)
    if len(text) > bounded.TEXT_CHARACTERS:
        bounded.refuse_long(record, where, RecordError, _WAY_OUT)
    try:
        problem = _content_problem(record, text)
    except (LookupError, TypeError, ValueError, AttributeError, SparsebenchError) as error:
        problem = f"not a record as sparsebench writes it ({error!r})"
    if problem:
        raise RecordError(f"{where}: {problem[:500]}", _WAY_OUT)
    return record


def _content_problem(record: dict[str, Any], text: str) -> str | None:
    """Say why a record is not as it was made, or what in it does not fit the rest; None where all is right."""
    kind = record.get("kind", "cell")
    if kind not in list(_NEEDED):  # a list, because a kind may be unhashable
        return f"a record of an unknown kind, {kind!r}"
    missing_keys = [key for key in _NEEDED[kind] if record.get(key) is None]
    if missing_keys:
        return f"a record without {', '.join(missing_keys)}"
    if "checksum" in record and not (isinstance(record.get("origin"), str) and provenance.is_intact(record, text)):
        return "changed or damaged since it was made (its checksum)"
    if kind == "plan":
        cells = record["cells"] if isinstance(record["cells"], list) else [None]
        cells_valid = all(isinstance(cell, dict) and "cell_id" in cell for cell in cells)
        return None if cells_valid else "a plan whose cells are not as they must be"
    return provenance.record_problem(record) if record["status"] in STATUSES else f"no status: {record['status']!r}"
