"""``sparsebench ingest`` and ``export``: a ledger from records, and out of the ledger."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import LEDGER, LEDGER_VERBS


class Target(StrEnum):
    """Export formats."""

    parquet = "parquet"
    csv = "csv"
    sqlite = "sqlite"


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(rich_help_panel=LEDGER_VERBS)(ingest)
    app.command(rich_help_panel=LEDGER_VERBS)(export)
    app.command(rich_help_panel=LEDGER_VERBS)(bundle)


def ingest(
    folders: Annotated[list[Path], typer.Argument(help="Folders of records, also from other machines.")],
    ledger: LEDGER = None,
) -> None:
    """Bring records into the ledger: rebuild it, or merge another machine's.

    What is there already stays there once.

    \b
    sparsebench ingest ledger/records
    sparsebench ingest ledger/published --ledger /tmp/published.duckdb
    """
    from sparsebench.cli.output import note
    from sparsebench.ledger.store import Ledger
    from sparsebench.plan.preflight import ledger_path

    path = ledger_path(ledger)
    count = Ledger(path).rebuild(folders)
    note(f"{count} records read; ledger: {path}")


def export(
    path: Annotated[Path, typer.Argument(help="A folder (parquet, csv) or a file (sqlite).")],
    to: Annotated[Target, typer.Option("--to", help="The format.")] = Target.parquet,
    ledger: LEDGER = None,
) -> None:
    """Write the ledger's views to other formats.

    \b
    sparsebench export out/tables --to csv
    sparsebench export out/ledger.sqlite --to sqlite
    """
    from sparsebench.cli.output import note
    from sparsebench.ledger.export import export as write
    from sparsebench.plan.preflight import ledger_path

    for written in write(ledger_path(ledger), to.value, path):
        note(str(written))


def bundle(
    records: Annotated[Path, typer.Argument(help="A folder of records.")],
    out: Annotated[Path, typer.Argument(help="The .jsonl.zst file to write.")],
    manifest: Annotated[
        list[str] | None,
        typer.Option(
            "--manifest", metavar="NAME", help="Only what these manifests ask for; repeatable.", show_default=False
        ),
    ] = None,
) -> None:
    """Pack records into one compressed file that ingest reads: for sharing or committing.

    \b
    sparsebench bundle ledger/records small.jsonl.zst --manifest small
    """
    from sparsebench.cli.output import note, size
    from sparsebench.records import bundle as write

    count = write(records, out, manifest or ())
    note(f"{count} records in {out} ({size(out.stat().st_size)})")
