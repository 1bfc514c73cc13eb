"""``sparsebench ingest``, ``tables``, ``bundle`` and ``unbundle``: what goes into a ledger and out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sparsebench.cli import options
from sparsebench.cli.output import note, notes
from sparsebench.errors import RecordError
from sparsebench.ledger.incoming import unbundle as add_bundle
from sparsebench.ledger.query import export as write_views
from sparsebench.ledger.store import Ledger
from sparsebench.paths import ledger_path
from sparsebench.records import bundle as write_bundle
from sparsebench.units import size


def ingest(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of records, of this or other machines.", parser=options.records_to_read),
    ],
    ledger: options.LEDGER_ALONE_TO_WRITE = None,
) -> None:
    """Add records to the ledger: rebuild it, or merge another machine's records.

    A record that the ledger has is not added again. A file or line that is no
    record, that was changed since it was made, or whose score is not what its
    outcomes give, is named and left out; the exit code is then 1.

    Of several records of one cell, those made beside this ledger count before
    others. What says otherwise is named as a conflict; the view `conflicts` of
    `sparsebench sql` has it all.

    \b
    sparsebench ingest ledger/records
    sparsebench ingest ledger/published --ledger /tmp/published.duckdb
    """
    rejected: list[RecordError] = []
    store = Ledger(ledger_path(ledger))
    count = store.rebuild(folders, rejected.append)
    notes("left out", list(map(str, rejected)))
    notes("conflict", store.conflicts())
    note(f"{count} records read; ledger: {store.path}")
    if rejected:
        raise typer.Exit(1)


def tables(
    path: Annotated[Path, typer.Argument(help="The folder to write.", parser=options.folder_to_write)],
    to: Annotated[Literal["parquet", "csv"], typer.Option(help="The format.")] = "parquet",
    ledger: options.LEDGER_ALONE = None,
) -> None:
    """Write the ledger's views and tables in other formats.

    \b
    sparsebench tables out/tables --to csv
    sparsebench tables out/parquet
    """
    for path_written in write_views(ledger_path(ledger), to, path):
        note(str(path_written))


def bundle(
    records: Annotated[Path, typer.Argument(help="A folder of records.", parser=options.records_to_read)],
    out: Annotated[Path, typer.Argument(help="The .jsonl.zst file to write.", parser=options.file_to_write)],
    manifest: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only the records that this manifest asks for; repeatable.")
    ] = None,
) -> None:
    """Pack records into one compressed file, to share or commit; ingest reads it.

    \b
    sparsebench bundle ledger/records small.jsonl.zst --manifest small
    """
    count = write_bundle(records, out, manifest or ())
    note(f"{count} records in {out} ({size(out.stat().st_size)})")


def unbundle(
    bundled: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The .jsonl.zst file.", parser=options.file_to_read)
    ],
    records: Annotated[Path, typer.Argument(help="The folder of a run's records.", parser=options.folder_to_write)],
) -> None:
    """Unpack a bundle into a folder of records, from which a run continues.

    The run does not measure again what the bundle has. Times and memory are an
    exception: they hold for one class of machine. Existing records stay. A
    record that is damaged, or that no run of this version would look for, is
    named and left out; the exit code is then 1.

    \b
    sparsebench unbundle small.jsonl.zst ledger/records
    """
    rejected: list[RecordError] = []
    added, already_there = add_bundle(bundled, records, rejected.append)
    notes("left out", list(map(str, rejected)))
    existing = f"; {already_there} of the bundle were already there" if already_there else ""
    note(f"{added} records added to {records}{existing}")
    if rejected:
        raise typer.Exit(1)
