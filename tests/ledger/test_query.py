"""Asking: every view answers, nothing can be written or reached, mistakes are explained, and rows leave in four shapes."""

import csv
import io
import json
import os
import signal
from pathlib import Path
from threading import Timer

import duckdb
import pytest

from sparsebench.errors import QueryError
from sparsebench.ledger import query, sqlfiles
from sparsebench.ledger.query import export

RESULTS = """
    manifest variant_id model family weights recipe method granularity pattern sparsity achieved_sparsity seed
    calibration dtype machine task metric higher_is_better score collapsed low high n limited num_fewshot chance
    dense_score retained retained_low retained_high verdict tests q q_tests detectable loss_at_most loses_less
    documents_to_clear floor bits_per_byte bytes_dense bytes_packed bytes_archive engine ranks workload prefill_ms
    decode_ms peak_bytes fastest_engine fastest_decode_ms best_dense_decode_ms speedup_over_best
""".split()
VIEWS = """
    activity cells conflicts curves failures floors gate latency layer_sparsity memory metrics outputs pareto recovered
    results samples scores sizes speedups steps structure tensors throughput training_curves variants vs_dense ways
""".split()


def test_every_view_answers_and_its_json_is_json(ledger: Path) -> None:
    """But for those of which the sample has nothing."""
    empty = {"activity", "conflicts", "failures", "floors", "outputs", "recovered", "training_curves"}
    with query.session(ledger) as ask:
        answers = {view: ask(f"FROM {view} LIMIT 20") for view in VIEWS}
    for view, rows in answers.items():
        assert len(rows.columns) >= 5
        assert bool(rows.rows) == (view not in empty), view
        assert len(json.loads("".join(query.render(rows, "json")))) == len(rows.rows)


def test_a_session_answers_as_single_queries_do_and_makes_each_view_once(ledger: Path) -> None:
    with query.session(ledger) as ask:
        for view in ("results", "curves", "tensors", "results"):
            sql = f"FROM {view} ORDER BY ALL"
            assert ask(sql) == query.run(ledger, sql)
        kept = {name for (name,) in ask("SELECT table_name FROM duckdb_tables() WHERE temporary").rows}
    assert {"results", "curves", "scores"} <= kept and not {"tensors", "structure"} & kept


def test_every_view_and_column_is_explained(ledger: Path) -> None:
    described = query.run(ledger, sqlfiles.read("describe"))
    assert described.columns == ("view", "column", "type", "meaning")
    assert sorted({row[0] for row in described.rows}) == VIEWS
    assert [row for row in described.rows if not row[3]] == []
    given = [row[1] for row in described.rows if row[0] == "results" and row[1]]
    assert given == RESULTS == list(query.run(ledger, "FROM results").columns)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO base.plans VALUES ('a', 'b', 'c', now())",
        "CREATE TABLE mine (a INTEGER)",
        "DELETE FROM base.records",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')",
        "COPY (SELECT 1) TO 'out.csv'",
        "ATTACH 'other.duckdb'",
        "EXPORT DATABASE 'out'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET temp_directory = 'planted'",
        "SET log_query_path = 'planted'",
        "CALL enable_logging(storage = 'file', storage_path = 'planted')",
        "CREATE PERSISTENT SECRET s (type http, bearer_token 'x')",
        "CREATE OR REPLACE VIEW results AS SELECT 1",
        "LOAD '/usr/lib/hostile.duckdb_extension'",
        "SELECT getenv('HOME')",
    ],
)
def test_a_query_reaches_nothing(ledger: Path, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = ledger.read_bytes()
    with pytest.raises(QueryError):
        query.run(ledger, statement)
    assert list(tmp_path.iterdir()) == []
    assert ledger.read_bytes() == before


def test_a_query_does_not_see_python_s_variables(ledger: Path) -> None:
    here = duckdb.sql("SELECT 1 AS a")
    assert here.fetchall() == [(1,)]
    with pytest.raises(QueryError, match="here does not exist"):
        query.run(ledger, "FROM here")


def test_a_mistake_is_shown_with_its_line_and_what_was_meant(ledger: Path) -> None:
    def wrong(sql: str) -> QueryError:
        with pytest.raises(QueryError) as caught:
            query.run(ledger, sql)
        return caught.value

    error = wrong("SELECT model,\n       scoer\nFROM scores")
    assert error.message.startswith('line 2: Referenced column "scoer" not found')
    excerpt, mark = error.message.splitlines()[1:]
    assert excerpt[mark.index("^") :].startswith("scoer")
    assert "score" in (error.hint or "")
    assert wrong("FROM resluts").hint == 'did you mean "results"?'
    # Views of our own, whose names begin with an underscore, are not offered.
    assert "_ruined" not in (wrong("FROM ruined").hint or "")
    assert "line 1: syntax error" in wrong("SELEC 1").message


@pytest.mark.parametrize("statement", ["SELECT 11; SELECT 22", "SELECT 11 AS twice, 22 AS twice"])
def test_a_query_of_which_a_part_would_be_lost_is_refused(ledger: Path, statement: str) -> None:
    with pytest.raises(QueryError):
        "".join(query.render(query.run(ledger, statement), "json"))


def test_rows_come_as_csv_json_and_markdown(ledger: Path) -> None:
    table = query.Table(("a", "b", "c"), ((1.5, None, "x|y\nz"), (float("nan"), [1, 2], 'say "hi", twice')))
    rows = list(csv.reader(io.StringIO("".join(query.render(table, "csv")))))
    assert rows == [["a", "b", "c"], ["1.5", "", "x|y\nz"], ["nan", "[1, 2]", 'say "hi", twice']]
    assert json.loads("".join(query.render(table, "json"))) == [
        {"a": 1.5, "b": None, "c": "x|y\nz"},
        {"a": None, "b": [1, 2], "c": 'say "hi", twice'},
    ]
    assert [*query.render(table, "markdown")][2].removesuffix("\n") == "| 1.5 |  | x&#124;y<br>z |"
    # Column names make no cells, and decimals are numbers.
    table = query.run(ledger, """SELECT 0.5 AS "a|b", [0.25] AS list""")
    assert {line.count("|") for line in "".join(query.render(table, "markdown")).splitlines()} == {3}
    assert json.loads("".join(query.render(table, "json"))) == [{"a|b": 0.5, "list": [0.25]}]


@pytest.mark.parametrize(("to", "reader"), [("parquet", "read_parquet"), ("csv", "read_csv_auto")])
def test_export_to_files(ledger: Path, tmp_path: Path, to: str, reader: str) -> None:
    names = {path.stem for path in export(ledger, to, tmp_path / "out")}
    assert set(VIEWS) < names
    assert {"base_outcomes", "base_latency_samples"} < names
    for name in ("results", "base_outcomes"):
        found = duckdb.sql(f"SELECT count(*) FROM {reader}('{tmp_path}/out/{name}.{to}')").fetchall()
        assert found == list(query.run(ledger, f"SELECT count(*) FROM {name.replace('base_', 'base.')}").rows)


def test_who_would_write_a_file_is_told_what_does(ledger: Path) -> None:
    with pytest.raises(QueryError) as caught:
        query.run(ledger, "COPY (FROM scores) TO 'x.csv'")
    assert "`sparsebench tables`" in (caught.value.hint or "")


def test_an_interrupted_query_in_the_main_thread_is_no_mistake_in_the_query(ledger: Path) -> None:
    """`tables` and `compare` read so. DuckDB tells of Ctrl-C with an error of its own."""

    def interrupted(connection: duckdb.DuckDBPyConnection) -> None:
        Timer(0.3, connection.interrupt).start()
        connection.execute("SELECT count(*) FROM range(10000000) a, range(100000) b WHERE a.range * b.range % 7 = 3")

    with pytest.raises(KeyboardInterrupt), query.reader(ledger) as connection:
        interrupted(connection)


def test_ctrl_c_ends_what_writes_tables(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "(SELECT count(*) FROM range(10000000) a, range(100000) b WHERE a.range * b.range % 7 = 3)"
    monkeypatch.setattr(query, "_relations", lambda connection: [("slow", slow)])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's processes ignore it
    timer = Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            export(ledger, "csv", tmp_path)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
