"""From a blank file to the exact schema, and from an older ledger without losing anything."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pytest

from sparsebench.errors import LedgerError
from sparsebench.ledger import connect, migrate, query, sqlfiles
from sparsebench.ledger.store import Ledger
from tests.ledger.test_views import of, outcomes

HERE = Path(__file__).parent
COLUMNS = """
    SELECT table_name || '.' || column_name || ' ' || data_type || if(is_nullable, '', ' NOT NULL')
    FROM duckdb_columns() WHERE schema_name = 'base' AND table_name IN (SELECT table_name FROM duckdb_tables())
    ORDER BY table_name, column_index
"""


def upgrade(path: Path, steps: tuple[str, ...] | None = None) -> None:
    with connect.writer(path, 5) as connection:
        migrate.upgrade(connection, path, steps)


def schema(path: Path) -> str:
    return "\n".join(row[0] for row in query.run(path, COLUMNS).rows) + "\n"


def test_from_blank_to_the_exact_schema(tmp_path: Path) -> None:
    upgrade(tmp_path / "blank.duckdb")
    assert schema(tmp_path / "blank.duckdb") == (HERE / "schema.txt").read_text()


STEPS = len(sqlfiles.folder("migrations"))


@pytest.mark.parametrize(
    "known",
    [one if one in (1, STEPS - 1) else pytest.param(one, marks=pytest.mark.long) for one in range(1, STEPS)],
)
def test_from_each_older_version_to_the_same_schema_with_its_rows(known: int, tmp_path: Path) -> None:
    steps, path = sqlfiles.folder("migrations"), tmp_path / "old.duckdb"
    with connect.writer(path, 5) as connection:
        for number, step in enumerate(steps[:known], 1):
            connection.execute(sqlfiles.read(step))
            connection.execute("INSERT INTO base.migrations VALUES (?, ?, now()::TIMESTAMP)", [number, step])
        connection.execute("INSERT INTO base.plans VALUES ('p', 'm', '', TIMESTAMP '2026-01-01')")
    assert query.run(path, "SELECT manifest FROM base.plans").rows == (("m",),)
    assert schema(path) == (HERE / "schema.txt").read_text()
    backup = path.with_name(f"old.before-{len(steps):04d}.duckdb")
    with duckdb.connect(str(backup), read_only=True) as connection:
        assert connection.execute("SELECT max(number) FROM base.migrations").fetchall() == [(known,)]


def test_threads_move_from_the_environment_to_the_record(tmp_path: Path) -> None:
    path = tmp_path / "old.duckdb"
    with connect.writer(path, 5) as connection:
        connection.execute(sqlfiles.read("migrations/0001_initial"))
        connection.execute("INSERT INTO base.migrations VALUES (1, '0001_initial', now()::TIMESTAMP)")
        connection.execute("INSERT INTO base.environments (environment_id, threads) VALUES ('e', 3), ('f', 4)")
        connection.execute(
            "INSERT INTO base.records BY NAME SELECT 'r' AS record_id, 'c' AS cell_id, 'storage' AS stage, 'done' AS status,"
            " 'm' AS manifest, 'v' AS variant_id, 'e' AS environment_id, TIMESTAMP '2026-01-01' AS started_at, 1 AS format"
        )
    assert query.run(path, "SELECT threads FROM base.records").rows == ((3,),)


def test_a_failed_migration_leaves_the_ledger_as_it_was(
    found: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.duckdb"
    Ledger(path).ingest(found[:3])
    before = schema(path)
    bad = tmp_path / "9999_bad.sql"
    bad.write_text("CREATE TABLE base.half (a INTEGER); ALTER TABLE base.absent ADD COLUMN b INTEGER;")
    with pytest.raises(LedgerError, match="absent"):
        upgrade(path, (*sqlfiles.folder("migrations"), str(bad.with_suffix(""))))
    assert schema(path) == before
    assert len(query.run(path, "FROM base.records").rows) == 2


def test_a_ledger_of_a_newer_program_is_refused(found: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "newer.duckdb"
    Ledger(path).ingest(found[:2])
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO base.migrations VALUES (99, '0099_future', now()::TIMESTAMP)")
    for attempt in (lambda: Ledger(path).ingest(found[:3]), lambda: query.run(path, "SELECT 1")):
        with pytest.raises(LedgerError, match=r"written by a newer sparsebench \(schema 99"):
            attempt()


def test_changed_views_are_reissued_with_their_comments(found: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "views.duckdb"
    Ledger(path).ingest(found[:2])
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE OR REPLACE VIEW failures AS SELECT 1 AS one")
        connection.execute("UPDATE base.issued_views SET digest = 'older'")
    assert query.run(path, "FROM failures").columns[0] == "manifest"
    assert ("failures", "", "", "cells without a result, with the reason") in query.describe(path).rows
    assert not list(tmp_path.glob("*.before-*"))


def test_older_clients_can_open_it(tmp_path: Path) -> None:
    upgrade(tmp_path / "a.duckdb")
    with duckdb.connect(str(tmp_path / "a.duckdb"), read_only=True) as connection:
        tags = connection.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()[0][0]
    assert tags["storage_version"].startswith("v1.4.0")


def test_what_was_a_method_with_its_settings_is_a_recipe_of_one_step(tmp_path: Path) -> None:
    path = tmp_path / "old.duckdb"
    steps = sqlfiles.folder("migrations")
    with connect.writer(path, 5) as connection:
        for number, step in enumerate(steps[:7], 1):
            connection.execute(sqlfiles.read(step))
            connection.execute("INSERT INTO base.migrations VALUES (?, ?, now()::TIMESTAMP)", [number, step])
        rows = "('d', 'm', 'decoder', 'dense', '', 'unstructured', 0, 'uniform', ''), " \
               "('w', 'm', 'decoder', 'wanda', 'row', '2:4', 0.5, 'uniform', 'dense')"  # fmt: skip
        columns = "variant_id, model, family, method, granularity, pattern, sparsity, allocation, propagate"
        connection.execute(f"INSERT INTO base.variants ({columns}) VALUES {rows}")
    assert query.run(path, "SELECT variant_id, recipe FROM variants ORDER BY 1").rows == (
        ("d", "dense"), ("w", "wanda/row 2:4 50% propagate=dense"),
    )  # fmt: skip
    assert dict(query.run(path, "SELECT field, value FROM steps").rows) == {
        "sparsity": "0.5", "granularity": "row", "pattern": "2:4", "allocation": "uniform", "propagate": "dense",
    }  # fmt: skip


def test_errors_that_were_compared_the_wrong_way_round_are_compared_again(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    path, last = tmp_path / "old.duckdb", of(found, stage="storage")[0]
    scored = [
        copy.deepcopy(of(found, stage="benchmarks", model="smol", method=method, sparsity=sparsity)[0])
        for method, sparsity in (("dense", 0.0), ("magnitude", 0.5))
    ]
    for record, wrong in zip(scored, (100, 130), strict=True):
        record["result"] |= outcomes([1] * wrong + [0] * (1000 - wrong)) | {"metric": "wer"}
    Ledger(path).ingest(scored)
    asked = "SELECT loss_at_most, loses_less, gained, lost FROM vs_dense"
    now = query.run(path, asked).rows
    assert now == ((pytest.approx(0.0396, abs=1e-4), False, 0, 30),)
    with connect.writer(path, 5) as connection:
        connection.execute("UPDATE base.comparisons SET loss_at_most = -0.02, gained = 30, lost = 0")
        connection.execute(sqlfiles.read("migrations/0021_lower_is_better"))
    Ledger(path).ingest([last])
    assert query.run(path, asked).rows == now
    # A run of a newer program with nothing to do but to bring its ledger up to date.
    with connect.writer(path, 5) as connection:
        connection.execute("UPDATE base.comparisons SET loss_at_most = -0.02, gained = 30, lost = 0")
        connection.execute("DELETE FROM base.migrations WHERE number > 20")
        connection.execute("ALTER TABLE base.memory_ranks DROP COLUMN cache_bytes")
        for table, column in product(("records", "plans"), ("origin", "own", "digest")):
            connection.execute(f"ALTER TABLE base.{table} DROP COLUMN {column}")
        connection.execute("ALTER TABLE base.variants DROP COLUMN own")
    assert Ledger(path).catch_up(tmp_path / "no-records") == 0
    assert query.run(path, asked).rows == now
