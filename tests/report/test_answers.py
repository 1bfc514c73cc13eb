"""What the report computes of longer answers, and which cells it calls missing."""

from pathlib import Path

import duckdb
import pytest

from sparsebench.ledger import query, sqlfiles
from sparsebench.ledger.store import Ledger
from sparsebench.report.lookup import query_named
from tests.ledger import samples
from tests.report.experiment import SMALL, fill

DENSE = [("torch", 100.0, 40.0), ("llama.cpp", 300.0, 10.0), ("ours", 90.0, None)]
SPEEDUPS = [("int4", 1.0, 2.0), ("gguf", 0.5, 2.5), ("untimed", 1.0, None)]


def test_a_long_answer_takes_its_prompt_and_its_tokens() -> None:
    """Dense: 300 + 200 x 10 ms by llama.cpp, not 100 + 200 x 40. The prompt's fastest engine writes tokens too."""
    where = ("m", "real", "here")
    dense = [
        (*where, "b1 p128 g16", phase, name, ms)
        for name, *times in DENSE
        for phase, ms in zip(("prefill", "decode"), times, strict=True)
    ]
    sped = [
        (name, *where, "sparse", "b1 p128 g16", name, "quantized", 1, 2, phase, speedup, True)
        for name, *speeds in SPEEDUPS
        for phase, speedup in zip(("prefill", "decode"), speeds, strict=True)
    ]
    with duckdb.connect() as connection:
        connection.execute("""
            CREATE TABLE _dense_times (model TEXT, weights TEXT, machine TEXT, workload TEXT, phase TEXT, name TEXT, ms DOUBLE);
            CREATE TABLE _headlines (variant_id TEXT, model TEXT, weights TEXT, machine TEXT, engine TEXT, workload TEXT,
                record_id TEXT, method TEXT, ranks INTEGER, rivals INTEGER, phase TEXT, speedup DOUBLE, gains BOOLEAN)""")
        fill(connection, "_dense_times", dense)
        fill(connection, "_headlines", sped)
        connection.execute(f"CREATE {sqlfiles.definitions()['_long_answers']}")
        found = connection.execute("SELECT variant_id, ms, dense_ms, speedup FROM _long_answers ORDER BY ms").fetchall()
    assert [row[0] for row in found] == ["gguf", "int4"]
    assert found[0][1:] == pytest.approx((100 / 0.5 + 200 * 10 / 2.5, 2300, 2300 / 1000))
    assert found[1][1:] == pytest.approx((100 + 200 * 10 / 2, 2300, 2300 / 1100))


def test_it_is_told_from_how_many_tokens_on_a_slower_prompt_pays() -> None:
    """The GGUF reads the prompt 100 ms later than int4 and writes each token 6 ms sooner."""
    with duckdb.connect() as connection:
        connection.execute("""
            CREATE TABLE cells AS SELECT unnest(['int4', 'gguf', 'ruined']) AS variant_id, 'real' AS weights;
            CREATE TABLE gate AS SELECT variant_id, variant_id <> 'ruined' AS passes FROM cells;
            CREATE TABLE _recipes AS SELECT variant_id, variant_id AS words, false AS chance FROM cells;
            CREATE TABLE _long_answers AS
            SELECT variant_id, 'm' AS model, 'real' AS weights, 'here' AS machine, 'any' AS engine, 'w' AS workload,
                   2 AS rivals, true AS gains, 200 AS tokens, 2300 AS dense_ms, prompt_ms, token_ms,
                   prompt_ms + 200 * token_ms AS ms, 2300 / ms AS speedup
            FROM (VALUES ('int4', 100.0, 10.0), ('gguf', 200.0, 4.0), ('ruined', 50.0, 5.0))
                 AS timed(variant_id, prompt_ms, token_ms)""")
        (row,) = connection.execute(query_named("answers")).df().to_dict("records")
    assert (row["recipe"], row["behind"]) == ("gguf", "int4")
    assert row["ahead_from"] == pytest.approx(100 / 6)


def test_a_chain_that_is_missing_is_named_by_all_its_steps(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.duckdb"
    chain = [{"prune": "magnitude", "sparsity": 0.5}, {"quantize": "int8"}]
    records = samples.sample(samples.manifest(**(SMALL | {"variants": [chain[0], chain]})))
    Ledger(ledger).ingest([r for r in records if r.get("kind") == "plan" or "int8" not in r["variant"]["recipe"]])
    rows = query.run(ledger, query_named("missing")).dicts()
    assert {row["variants"] for row in rows} == {"magnitude 50%, int8"}
