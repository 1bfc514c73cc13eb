"""A ledger gets this program's schema and views; one of another version is refused, and says the way out."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from sparsebench.errors import LedgerError
from sparsebench.ledger import connect, query, schema, sqlfiles
from sparsebench.ledger.store import Ledger
from tests.ledger.made import Records


def upgrade(path: Path) -> None:
    with connect.writer(path, 5) as connection:
        schema.upgrade(connection, path)


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Adds a file of SQL to the schema, as a later version would."""
    files, folder, read = sqlfiles.folder("schema"), sqlfiles.folder, sqlfiles.read

    def add(text: str) -> None:
        monkeypatch.setattr(sqlfiles, "folder", lambda name: (*files, "later") if name == "schema" else folder(name))
        monkeypatch.setattr(sqlfiles, "read", lambda name: text if name == "later" else read(name))

    return add


@pytest.fixture
def path(found: Records, tmp_path: Path) -> Path:
    """A ledger of two records."""
    Ledger(tmp_path / "l.duckdb").ingest(found[:3])
    return tmp_path / "l.duckdb"


def test_a_later_schema_is_added(path: Path, step: Callable[[str], None]) -> None:
    step("ALTER TABLE base.plans ADD COLUMN later INTEGER")
    assert query.run(path, "SELECT later FROM base.plans").rows == ((None,),)
    assert len(query.run(path, "FROM base.records").rows) == 2
    assert query.run(path, "SELECT number FROM base.version").rows == ((len(sqlfiles.folder("schema")),),)


def test_a_schema_that_fails_leaves_the_ledger_as_it_was(
    path: Path, step: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'base' ORDER BY 1"
    before = query.run(path, tables)
    step("CREATE TABLE base.half (a INTEGER); ALTER TABLE base.absent ADD COLUMN b INTEGER;")
    with pytest.raises(LedgerError, match="absent"):
        upgrade(path)
    monkeypatch.undo()
    assert query.run(path, tables) == before
    assert len(query.run(path, "FROM base.records").rows) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE base.version SET number = 99", r"newer sparsebench \(schema 99"),
        ("DELETE FROM base.version", "which version"),
        ("ALTER TABLE base.version ALTER number DROP NOT NULL; UPDATE base.version SET number = NULL", "which version"),
        ("ALTER TABLE base.version ALTER number TYPE VARCHAR", "which version"),
        ("DROP TABLE base.version", "not a ledger"),
    ],
)
def test_another_versions_ledger_stays(found: Records, path: Path, change: str, says: str) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(change)
    before = path.read_bytes()
    for attempt in (lambda: Ledger(path).ingest(found[3:4]), lambda: query.run(path, "SELECT 1")):
        with pytest.raises(LedgerError, match=says):
            attempt()
        assert path.read_bytes() == before


def test_changed_views_are_reissued_with_their_comments(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE OR REPLACE VIEW failures AS SELECT 1 AS one")
        connection.execute("UPDATE base.version SET views = 'older'")
    assert query.run(path, "FROM failures").columns[0] == "manifest"
    comment = ("failures", "", "", "cells without a result, with the reason")
    assert comment in query.run(path, sqlfiles.read("describe")).rows


def test_older_clients_can_open_it(tmp_path: Path) -> None:
    upgrade(tmp_path / "a.duckdb")
    with duckdb.connect(str(tmp_path / "a.duckdb"), read_only=True) as connection:
        tags = connection.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()[0][0]
    assert tags["storage_version"].startswith("v1.4.0")
