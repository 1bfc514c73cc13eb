"""The commands of a ledger: ``sql``, ``figures``, ``report``, ``compare``, ``ingest``, ``export``, ``bundle``, ``unbundle``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sparsebench import bounded
from sparsebench.cli.options import (
    JSON,
    LEDGER_ALONE,
    LEDGER_ALONE_TO_WRITE,
    YEAR,
    file_to_read,
    file_to_write,
    folder_to_read,
    folder_to_write,
    path_to_write,
    records_to_read,
)
from sparsebench.cli.output import emit_json, emit_table, emit_text, figure, note, notes, size
from sparsebench.errors import RecordError, UserError
from sparsebench.escape import visible

if TYPE_CHECKING:
    from sparsebench.ledger.compare import SideBySide, TaskComparison

SHOWN = 1000
"""At most this many rows are shown in a table on a terminal."""
Picture = StrEnum("Picture", ["png", "svg", "pdf"])
Page = StrEnum("Page", ["md", "html"])
VARIANT = (
    "MODEL/RECIPE, such as smollm2-135m/wanda/0.5, smollm2-135m/int8 or smollm2-135m/dense; or the beginning of its id."
)


def sql(
    query: Annotated[
        str | None, typer.Argument(help="One SELECT; without it, the views and their columns are listed.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", help="Read the query from a file; - is stdin.", metavar="FILE", parser=file_to_read
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Run the query behind a table of the report, or behind a picture: figures/NAME."
        ),
    ] = None,
    manifest: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --report: only this experiment; repeatable.")
    ] = None,
    shape: Annotated[
        Literal["table", "csv", "json", "markdown"], typer.Option("--format", help="How rows are printed.")
    ] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    timeout: Annotated[float, typer.Option(min=0, max=YEAR, help="Seconds that a query may take; 0: no limit.")] = 300,
    ledger: LEDGER_ALONE = None,
) -> None:
    """Query the ledger with SQL. Without a query, list its views and columns.

    \b
    sparsebench sql
    sparsebench sql "select model, method, sparsity, task, score from results"
    sparsebench sql -f my.sql --format csv > my.csv
    sparsebench sql --report findings_scores
    sparsebench sql --timeout 10 "select count(*) from samples a, samples b"
    """
    from sparsebench.ledger import query as ask
    from sparsebench.ledger import sqlfiles
    from sparsebench.plan.preflight import ledger_path

    if sum(given is not None for given in (query, file, report)) > 1:
        raise UserError("of a query, --file and --report more than one was given", "give one of them")
    if manifest and not report:
        raise UserError("--manifest limits a query of the report", "name it with --report")
    path = ledger_path(ledger)
    if file:
        query = _query(file)
    elif report:
        from sparsebench.report.lookup import query_named

        query = query_named(report, manifest or ())
    with ask.streaming(path, query or sqlfiles.read("describe"), timeout=timeout) as found:
        if shape == "table" and not as_json:
            # A table on a terminal is as wide as its widest row, so all rows must be there before it is drawn.
            emit_table(found.columns, islice(found.rows, SHOWN) if sys.stdout.isatty() else found.rows)
            if sys.stdout.isatty() and next(found.rows, None):
                note(f"only the first {SHOWN:,} rows are shown; --format csv prints all")
        else:
            for text in ask.render(found, "json" if as_json else shape):
                emit_text(text)
        sys.stdout.flush()


def _query(file: Path) -> str:
    """Return the query in a file, or on stdin for ``-``. Raises UserError for what is longer than a query may be."""
    if str(file) == "-":
        text = sys.stdin.read(bounded.QUERY + 1)
        if len(text) > bounded.QUERY:
            raise UserError(f"--file -: more than {bounded.QUERY:,} characters", "give a shorter query")
        return text
    return bounded.whole(file, UserError, bounded.QUERY)


def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Figures to render; default: all.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the figures and what each shows.")] = False,
    out: Annotated[
        Path, typer.Option(help="The folder for the pictures.", metavar="FOLDER", parser=folder_to_write)
    ] = Path("figures"),
    formats: Annotated[list[Picture] | None, typer.Option("--format", help="Repeatable; default: png and svg.")] = None,
    width: Annotated[
        float, typer.Option(min=2.5, max=20, help="Width in inches: 3.3 fits a paper's column, 6.5 its page.")
    ] = 6.5,
    ledger: LEDGER_ALONE = None,
    as_json: JSON = False,
) -> None:
    """Render figures from the ledger.

    Your .sql files in ./figures are rendered too; one with the name of a shipped figure replaces it.

    \b
    sparsebench figures
    sparsebench figures score --format pdf --width 3.3 --out paper/
    """
    from sparsebench import figures as package
    from sparsebench.plan.preflight import ledger_path

    if list_them:
        columns = ["name", "title", "about", "file"]
        rows = [[spec.name, spec.title, spec.get("about"), str(spec.path)] for spec in package.listing()]
        if as_json:
            emit_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            emit_table(columns[:3], [row[:3] for row in rows])
        return
    chosen = tuple(map(str, formats or ("png", "svg")))
    for result in package.render(ledger_path(ledger), names or [], out, chosen, width=width):
        if result.skipped:
            note(f"{result.name}: left out: {result.skipped}")
        for path in result.paths:
            typer.echo(path)


def report(
    out: Annotated[
        Path,
        typer.Option(
            help="The Markdown file; the HTML page is written beside it.", metavar="FILE", parser=file_to_write
        ),
    ] = Path("report.md"),
    results: Annotated[
        Path | None,
        typer.Option(
            help="The file of tables and commands, to which the report links. Default: NAME-results.md beside it.",
            metavar="FILE",
            parser=file_to_write,
        ),
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Write only the first page, and no other file.")] = False,
    figures: Annotated[
        Path,
        typer.Option(
            help="The folder of pictures from `sparsebench figures`; links are relative.",
            metavar="FOLDER",
            parser=folder_to_read,
        ),
    ] = Path("figures"),
    manifest: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this experiment; repeatable. Default: all.")
    ] = None,
    formats: Annotated[
        list[Page] | None,
        typer.Option(
            "--format",
            help="md, or html: one page with everything in it. Repeatable. Default: both; with --brief only md.",
        ),
    ] = None,
    ledger: LEDGER_ALONE = None,
) -> None:
    """Write a report of the ledger, tables with the command that prints all rows of each, and one HTML page of both.

    \b
    sparsebench report
    sparsebench report --brief --out summary.md
    sparsebench report --manifest quickstart --out out/report.md
    """
    from sparsebench.plan.preflight import ledger_path
    from sparsebench.report import build

    kinds = [str(kind) for kind in formats or ([Page.md] if brief else Page)]
    for path in build(ledger_path(ledger), out, figures, manifest or (), kinds, results, brief):
        typer.echo(path)


def ingest(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of records, of this or other machines.", parser=records_to_read)
    ],
    ledger: LEDGER_ALONE_TO_WRITE = None,
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
    from sparsebench.ledger.store import Ledger
    from sparsebench.plan.preflight import ledger_path

    wrong: list[RecordError] = []
    book = Ledger(ledger_path(ledger))
    count = book.rebuild(folders, wrong.append)
    notes("left out", list(map(str, wrong)))
    if book.unsealed:
        note(f"{book.unsealed} of the records have no checksum: an earlier version made them, and damage may not show")
    notes("conflict", book.conflicts())
    note(f"{count} records read; ledger: {book.path}")
    if wrong:
        raise typer.Exit(1)


def export(
    path: Annotated[
        Path, typer.Argument(help="The folder (parquet, csv) or file (sqlite) to write.", parser=path_to_write)
    ],
    to: Annotated[Literal["parquet", "csv", "sqlite"], typer.Option(help="The format.")] = "parquet",
    ledger: LEDGER_ALONE = None,
) -> None:
    """Export the ledger's views to other formats.

    \b
    sparsebench export out/tables --to csv
    sparsebench export out/ledger.sqlite --to sqlite
    """
    from sparsebench.ledger.export import export as write
    from sparsebench.plan.preflight import ledger_path

    for written in write(ledger_path(ledger), to, path):
        note(str(written))


def bundle(
    records: Annotated[Path, typer.Argument(help="A folder of records.", parser=records_to_read)],
    out: Annotated[Path, typer.Argument(help="The .jsonl.zst file to write.", parser=file_to_write)],
    manifest: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only the records that this manifest asks for; repeatable.")
    ] = None,
) -> None:
    """Pack records into one compressed file, to share or commit; ingest reads it.

    \b
    sparsebench bundle ledger/records small.jsonl.zst --manifest small
    """
    from sparsebench.records import bundle as write

    count = write(records, out, manifest or ())
    note(f"{count} records in {out} ({size(out.stat().st_size)})")


def unbundle(
    bundled: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The .jsonl.zst file.", parser=file_to_read)],
    records: Annotated[Path, typer.Argument(help="The folder of a run's records.", parser=folder_to_write)],
) -> None:
    """Unpack a bundle into a folder of records, from which a run continues.

    The run does not measure again what the bundle has. Times and memory are an
    exception: they hold for one class of machine. Existing records stay. A
    record that is damaged, or that no run of this version would look for, is
    named and left out; the exit code is then 1.

    \b
    sparsebench unbundle small.jsonl.zst ledger/records
    """
    from sparsebench.ledger.incoming import unbundle as write

    wrong: list[RecordError] = []
    came, met = write(bundled, records, wrong.append)
    notes("left out", list(map(str, wrong)))
    note(f"{came} records added to {records}{f'; {met} of the bundle were already there' if met else ''}")
    if wrong:
        raise typer.Exit(1)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=VARIANT)],
    b: Annotated[str, typer.Argument(metavar="B", help="The variant to compare with A.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    ledger: LEDGER_ALONE = None,
    as_json: JSON = False,
) -> None:
    """Compare two measured variants: scores on the same documents, size, time, memory.

    The difference is B minus A over the documents that both were scored on,
    with its 95% interval. The verdict is on B, at 5% after Holm's correction
    for the number of tasks. `detectable` is the smallest true difference that
    such a sample shows in four cases of five. Where no difference was detected,
    a smaller one may exist. `loss at most` is the largest loss that the
    documents leave possible (one-sided 95%). For a perplexity, both are
    percentages of A's.

    \b
    sparsebench compare smollm2-135m/dense smollm2-135m/wanda/0.5
    sparsebench compare minilm-l6/magnitude/row/50% minilm-l6/random/0.5
    sparsebench compare smollm2-135m/dense smollm2-135m/ria/2:4 --task piqa
    sparsebench compare smollm2-135m/int8 smollm2-135m/sparsegpt/50%/int8
    """
    from sparsebench.ledger.compare import side_by_side
    from sparsebench.plan.preflight import ledger_path

    found = side_by_side(ledger_path(ledger), a, b, task or [])
    if as_json:
        names = {side: {"name": getattr(found, side).name} for side in ("a", "b")}
        emit_json({**asdict(found), **{side: asdict(getattr(found, side)) | names[side] for side in names}})
        return
    _show_pair(found)
    for text in found.notes:
        note(text)


def _show_pair(found: SideBySide) -> None:
    """Print the comparison as tables, leaving out those without rows."""
    tests = sum(one.paired.p is not None for one in found.scores)
    scores = [_score(one, tests) for one in found.scores]
    sizes = [[row["format"], size(row["a"]), size(row["b"]), f"{row['ratio']:.3f}"] for row in found.sizes]
    times = [_time(row) for row in found.latency]
    memory = [
        [_engine(row), row["workload"], size(row["a"]), size(row["b"]), f"{row['ratio']:.3f}"] for row in found.memory
    ]
    for side, one in (("A", found.a), ("B", found.b)):
        print(visible(f"{side}  {one.name}  ({one.details})"))
    for heads, rows in (
        (["task", "A", "B", "B - A [95%]", "verdict on B", "detectable", "loss at most"], scores),
        (["bytes as", "A", "B", "B / A"], sizes),
        (["time, ms", "phase", "A", "B", "speed-up [95%]", "verdict on B"], times),
        (["peak memory", "workload", "A", "B", "B / A"], memory),
    ):
        if rows:
            print()
            emit_table(heads, rows)


def _score(one: TaskComparison, tests: int) -> list[Any]:
    """Return a task's row: notes stand below its name, and what the correction for ``tests`` did below the verdict."""
    from sparsebench.ledger.statistics import Metric

    pair = one.paired
    ends = f"[{figure(pair.low, '+')}, {figure(pair.high, '+')}]"
    shift = f"{figure(pair.difference, '+')} {ends}" if pair.p is not None else ""
    documents = f"{pair.n or min(one.n_a, one.n_b):,} documents" + (" drawn" if one.limited else "")
    name = "\n".join(filter(None, [f"{one.task}", f"{one.metric}, {documents}", one.note]))
    verdict = one.verdict or ""
    if pair.p is not None and one.p_holm is not None and pair.p < 0.05 <= one.p_holm:
        verdict += f"\n(p {pair.p:.2g}; {one.p_holm:.2g} as one of {tests} tests)"
    whole = one.a if Metric.named(one.metric).scale == "perplexity" else None
    sizes = (None, None) if one.stood.collapsed else (pair.detectable, pair.loss_at_most)
    shown = [_share(number, whole) for number in sizes]
    return [name, figure(one.a), figure(one.b), shift, verdict, *shown]


def _share(number: float | None, whole: float | None) -> str:
    """Format a difference: in percent of the perplexity ``whole``, or as it is where ``whole`` is None."""
    return figure(number) if number is None or whole is None else f"{number / whole:.2%}"


def _engine(row: dict[str, Any]) -> str:
    return f"{row['engine']} ×{row['ranks']} {row['dtype']}"


def _time(row: dict[str, Any]) -> list[Any]:
    interval = f" [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" if row["verdict"] else ""
    setting, shown = f"{_engine(row)} {row['workload']}", f"{row['speedup']:.2f}{interval}"
    return [setting, row["phase"], f"{row['a_ms']:.1f}", f"{row['b_ms']:.1f}", shown, row["verdict"] or "not paired"]
