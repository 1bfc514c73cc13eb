"""Record files: one JSON record a file, plain or zstd-compressed, or bundles of many (one a line, zstd)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import LedgerError
from sparsebench.paths import create

FORMAT = 2
"""The record format that this program reads."""
SUFFIXES = (".json", ".json.zst", ".jsonl.zst")
_LEVEL = 19
_NEEDED = {"cell": ("cell_id", "stage", "status", "variant", "started_at"), "plan": ("manifest", "written_at", "cells")}


def read(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Every record in or below ``folders`` (a file may be named too), files in order of name.

    Raises LedgerError naming the file, and the line in a bundle, that is not a record of a known format.
    """
    for folder in folders:
        if not folder.exists():
            raise LedgerError(f"{folder}: does not exist", "name a folder of records")
        for path in [folder] if folder.is_file() else _below(folder):
            for number, text in enumerate(_texts(path), 1):
                yield _parse(text, path if number == 1 else f"{path}, line {number}")


def bundle(folder: Path, out: Path, manifests: Collection[str] = ()) -> int:
    """Write the records of ``folder`` into one compressed file, outcomes and raw samples included; how many there were.

    With ``manifests``, only their plans and the records of the cells that they ask for, whichever manifest made them.
    The same records give the same bytes.
    """
    import zstandard

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    count = 0
    try:
        with create(partial, "wb") as file, zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file) as packed:
            for record in _chosen(folder, manifests):
                packed.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
                count += 1
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _chosen(folder: Path, manifests: Collection[str]) -> Iterator[dict[str, Any]]:
    if not manifests:
        yield from read([folder])
        return
    plans = [plan for plan in read(_below(folder, "plan-*.json")) if plan["manifest"] in manifests]
    missing = set(manifests) - {plan["manifest"] for plan in plans}
    if missing:
        raise LedgerError(f"{folder}: no plan of {', '.join(sorted(missing))}", "see the names: sparsebench status")
    yield from plans
    wanted = {cell["cell_id"] for plan in plans for cell in plan["cells"]}
    yield from (record for record in read([folder]) if record.get("cell_id") in wanted)


def _below(folder: Path, names: str = "*") -> list[Path]:
    """The record files in or below ``folder``, which may be a stranger's. Raises LedgerError for a link that leaves it."""
    found = sorted(
        path for path in folder.rglob(names) if path.name.endswith(SUFFIXES) and path.name[0] != "." and path.is_file()
    )
    for path in found:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise LedgerError(f"{path}: a link to a file outside of {folder}", "remove it, or name that file itself")
    return found


def _texts(path: Path) -> Iterator[str]:
    import zstandard

    try:
        yield from (
            bounded.lines(path, LedgerError) if path.name.endswith(".zst") else [bounded.whole(path, LedgerError)]
        )
    except zstandard.ZstdError as error:
        raise LedgerError(f"{path}: not a whole zstd file ({error})", "copy the file again") from error
    except UnicodeDecodeError as error:
        raise LedgerError(f"{path}: not UTF-8 text (byte {error.start})", "copy the file again") from error


def _parse(text: str, where: Path | str) -> dict[str, Any]:
    record = bounded.parse(text, where, LedgerError, "remove the file, or copy it again")
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise LedgerError(f"{where}: not a record (no `format`)", "name a folder that holds records only")
    if record["format"] != FORMAT:
        older = "ledgers of earlier versions are brought up to date, their records are not: keep the ledger"
        way = "upgrade sparsebench" if record["format"] > FORMAT else older
        raise LedgerError(f"{where}: record format {record['format']}, this program reads {FORMAT}", way)
    missing = [key for key in _NEEDED.get(str(record.get("kind", "cell")), ()) if record.get(key) is None]
    if missing:
        raise LedgerError(f"{where}: a record without {', '.join(missing)}", "remove the file, or copy it again")
    return record
