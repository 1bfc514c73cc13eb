"""A ledger or a bundle from somebody else: it reads no file here, and our views are shown, not its own."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from sparsebench import provenance, records
from sparsebench.errors import LedgerError, RecordError, SparsebenchError
from sparsebench.ledger import connect, query, schema, sqlfiles
from sparsebench.ledger.query import export
from sparsebench.ledger.store import Ledger
from tests.ledger.made import Records
from tests.strangers import CANARY


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that no output may show."""
    path = tmp_path / "secret.txt"
    path.write_bytes(CANARY)
    return path


@pytest.fixture
def changed(ledger: Path, tmp_path: Path) -> Callable[..., Path]:
    """A ledger as a stranger left it, by these statements."""

    def change(*statements: str) -> Path:
        path = tmp_path / "theirs.duckdb"
        shutil.copy(ledger, path)
        with duckdb.connect(str(path)) as connection:
            for statement in statements:
                connection.execute(statement)
        return path

    return change


@pytest.fixture
def theirs(changed: Callable[..., Path], secret: Path) -> Path:
    """One whose views, ours by name and others, read the secret."""
    reads = f"AS SELECT content AS model, content AS task, * FROM read_text('{secret}')"
    return changed(
        *(
            f"CREATE OR REPLACE VIEW {name} {reads}"
            for name in ("results", "scores", "pareto", "_cells", "_latest", "stolen")
        ),
        "CREATE OR REPLACE MACRO _goodness(score, higher_is_better) AS 42",
        'CREATE TABLE base."../../stolen" AS SELECT 1 AS a',
    )


@pytest.mark.parametrize("to", ["csv", pytest.param("parquet", marks=pytest.mark.long)])
def test_our_views_say_what_leaves_a_strangers_ledger(ledger: Path, theirs: Path, tmp_path: Path, to: str) -> None:
    out, ours = tmp_path / "out" / "x", tmp_path / "ours" / "x"
    written = [path.relative_to(out.parent) for path in export(theirs, to, out)]
    assert written == [path.relative_to(ours.parent) for path in export(ledger, to, ours)]
    assert not list(tmp_path.rglob("*stolen*"))
    for path in written:
        assert CANARY not in (out.parent / path).read_bytes()
        read = f"SELECT * FROM '{{}}/{path}' ORDER BY ALL"
        assert duckdb.sql(read.format(out.parent)).fetchall() == duckdb.sql(read.format(ours.parent)).fetchall()


def test_our_views_are_asked_whatever_the_file_calls_so(ledger: Path, theirs: Path) -> None:
    for sql in ("FROM results ORDER BY ALL", "SELECT _goodness(2, false)", "SELECT Model FROM SCORES ORDER BY 1"):
        assert query.run(theirs, sql) == query.run(ledger, sql)
    with pytest.raises(SparsebenchError, match="disabled by configuration"):
        query.run(theirs, "FROM stolen")


def test_nothing_of_it_is_read_while_records_come_in(theirs: Path, found: Records, secret: Path) -> None:
    record = next(record for record in found if record.get("stage") == "benchmarks")
    again = record | {"started_at": "2027-01-01T00:00:00+00:00", "cell_id": "another"}
    assert Ledger(theirs).ingest([again]) == 1
    assert query.run(
        theirs, "SELECT count(*) FROM base.intervals JOIN base.records USING (record_id) WHERE cell_id = 'another'"
    ).rows == ((1,),)
    with connect.writer(theirs, 5) as connection, pytest.raises(duckdb.Error, match="disabled by configuration"):
        connection.execute(f"FROM read_text('{secret}')")


def test_an_export_reaches_its_own_folder_only(theirs: Path, secret: Path, tmp_path: Path) -> None:
    out = tmp_path / "it's out"
    out.mkdir()
    with query.reader(theirs, writable_folder=out) as connection:
        quoted = str(out / "a.csv").replace("'", "''")
        connection.execute(f"COPY (SELECT 1) TO '{quoted}'")
        for sql in (
            f"FROM read_text('{secret}')",
            f"COPY (SELECT 1) TO '{tmp_path}/b.csv'",
            "SET enable_external_access = true",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
    assert [path.name for path in out.iterdir()] == ["a.csv"]
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize(
    ("statement", "culprit"),
    [
        ("CREATE MACRO median(x) AS 42", "macro median"),
        ('CREATE MACRO "List_Sort"(x) AS 42', "macro List_Sort"),
        ('CREATE MACRO "+"(a, b) AS 42', "macro +"),
        ("CREATE MACRO lower(x) AS 'none'", "macro lower"),
        ("CREATE MACRO duckdb_tables() AS TABLE SELECT 'base' AS schema_name, 'version' AS table_name",
         "macro duckdb_tables"),
        ("CREATE MACRO duckdb_functions() AS TABLE SELECT 'none' AS function_name, false AS internal",
         "macro duckdb_functions"),
        ("CREATE TYPE json AS ENUM ('a')", "type json"),
    ],
)  # fmt: skip
def test_what_stands_in_for_duckdb_s_own_is_refused(
    changed: Callable[..., Path], found: Records, statement: str, culprit: str
) -> None:
    path = changed(statement)
    for attempt in (lambda: query.run(path, "SELECT 1"), lambda: Ledger(path).ingest(found[:1])):
        with pytest.raises(LedgerError) as caught:
            attempt()
        assert culprit in caught.value.message and str(path) in caught.value.message


def test_what_is_not_a_ledgers_is_named(changed: Callable[..., Path], found: Records) -> None:
    path = changed("DROP VIEW results", "CREATE TABLE results (a INTEGER)", "UPDATE base.version SET views = 'older'")
    with pytest.raises(LedgerError, match="results"):
        Ledger(path).ingest(found[:1])


def test_a_trigger_is_refused(tmp_path: Path, found: Records) -> None:
    path = tmp_path / "triggered.duckdb"
    try:
        with duckdb.connect(str(path), config={"storage_compatibility_version": "v2.0.0"}) as connection:
            schema.upgrade(connection, path)
            connection.execute(
                "CREATE TRIGGER sly AFTER INSERT ON base.plans FOR EACH STATEMENT UPDATE base.version SET number = 99"
            )
    except duckdb.Error as error:
        pytest.skip(f"this DuckDB has no triggers: {error}")
    with pytest.raises(LedgerError, match="trigger sly"):
        Ledger(path).ingest(found[:1])


def test_a_macro_and_a_view_of_ones_own_stay_and_a_name_is_no_statement(changed: Callable[..., Path]) -> None:
    path = changed(
        "CREATE MACRO twice(x) AS 2 * x",
        "CREATE VIEW mine AS SELECT twice(21) AS a",
        "CREATE VIEW sly AS SELECT 1 AS manifest",
        """CREATE VIEW "sly.manifest IS 'a'; DELETE FROM base.plans; --" AS SELECT 2 AS manifest""",
        "UPDATE base.version SET views = 'older'",
    )
    assert query.run(path, "FROM mine").rows == ((42,),)
    assert query.run(path, "SELECT count(*) FROM base.plans").rows == ((1,),)


def test_every_definition_stands_by_itself(ledger: Path) -> None:
    assert len(sqlfiles.definitions()) == sum(
        sqlfiles.read(file).count("CREATE OR REPLACE") for file in sqlfiles.folder("views")
    )
    with query.reader(ledger) as connection:
        for name, text in sqlfiles.definitions().items():
            alone = connection.cursor()  # which sees nothing of what others have made for themselves
            schema.create_temp_views(alone, name, set())
            if text.startswith("VIEW"):
                columns = [f"SELECT column_name FROM (DESCRIBE {schema}{name})" for schema in ("temp.", "main.")]
                assert alone.execute(columns[0]).fetchall() == alone.execute(columns[1]).fetchall()


def test_a_link_out_of_the_folder_and_a_pipe_are_no_records(tmp_path: Path, found: Records) -> None:
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    for folder in (theirs, mine):
        folder.mkdir()
    (mine / "private.done.json").write_text(json.dumps(found[1]))
    (theirs / "plan-a.json").symlink_to(mine / "private.done.json")
    for attempt in (
        lambda: Ledger(tmp_path / "x.duckdb").rebuild([theirs]),
        lambda: records.bundle(theirs, tmp_path / "b.zst", ["a"]),
    ):
        with pytest.raises(LedgerError, match=r"plan-a\.json"):
            attempt()
    (theirs / "plan-a.json").unlink()
    os.mkfifo(theirs / "never.done.json")
    (theirs / "real").write_text(json.dumps(found[1]))
    (theirs / "inside.json").symlink_to("real")
    (theirs / "below").symlink_to(mine, target_is_directory=True)
    assert len(list(records.read([theirs]))) == 1


def test_an_id_is_no_path(tmp_path: Path, found: Records) -> None:
    (tmp_path / "in").mkdir()
    for one, cell in enumerate(("../../escaped", "/escaped", "a/b")):
        names = {"cell_id": cell, "key": cell}
        hostile = [record | (names if "cell_id" in record else {"manifest": cell}) for record in found[:2]]
        for number, record in enumerate(hostile):
            (tmp_path / "in" / f"{one}{number}.json").write_text(json.dumps(provenance.sealed(record | {"origin": ""})))
    path = tmp_path / "deep" / "er" / "x.duckdb"
    wrong: list[RecordError] = []
    assert Ledger(path).rebuild([tmp_path / "in"], wrong.append) == 3, "plans have no cell of their own"
    assert len(wrong) == 3
    export(path, "csv", tmp_path / "deep" / "er" / "out")
    assert not list(tmp_path.rglob("*escaped*")) and not Path("/escaped").exists()
