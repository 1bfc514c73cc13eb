"""Record files: one JSON record a file, plain or zstd-compressed, or bundles of many (one a line, zstd)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import LedgerError

FORMAT = 1
"""The newest record format that this program reads."""
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
        files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if _is_record(path))
        for path in files:
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
        with partial.open("wb") as file, zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file) as packed:
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
    plans = [plan for plan in read(sorted(folder.glob("plan-*.json"))) if plan["manifest"] in manifests]
    missing = set(manifests) - {plan["manifest"] for plan in plans}
    if missing:
        raise LedgerError(f"{folder}: no plan of {', '.join(sorted(missing))}", "see the names: sparsebench status")
    yield from plans
    wanted = {cell["cell_id"] for plan in plans for cell in plan["cells"]}
    yield from (record for record in read([folder]) if record.get("cell_id") in wanted)


def _is_record(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _texts(path: Path) -> Iterator[str]:
    if not path.name.endswith(".zst"):
        yield bounded.whole(path, LedgerError)
        return
    import zstandard

    try:
        yield from bounded.lines(path, LedgerError)
    except zstandard.ZstdError as error:
        raise LedgerError(f"{path}: not a whole zstd file ({error})", "copy the file again") from error


def _parse(text: str, where: Path | str) -> dict[str, Any]:
    record = bounded.parse(text, where, LedgerError, "remove the file, or copy it again")
    if not isinstance(record, dict) or "format" not in record:
        raise LedgerError(f"{where}: not a record (no `format`)", "name a folder that holds records only")
    if record["format"] > FORMAT:
        raise LedgerError(
            f"{where}: record format {record['format']}, this program reads {FORMAT}", "upgrade sparsebench"
        )
    missing = [key for key in _NEEDED.get(record.get("kind", "cell"), ()) if record.get(key) is None]
    if missing:
        raise LedgerError(f"{where}: a record without {', '.join(missing)}", "remove the file, or copy it again")
    return record
