"""Records in, once: idempotent, in any order, from any machine, and never from a newer program; and in bundles."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import zstandard

from sparsebench import provenance
from sparsebench.errors import LedgerError, UserError
from sparsebench.ledger import derive, query
from sparsebench.ledger.batches import batched
from sparsebench.ledger.incoming import unbundle
from sparsebench.ledger.store import Ledger
from sparsebench.paths import write_whole
from sparsebench.provenance import sealed
from sparsebench.records import bundle, read, statuses, write
from tests.ledger import samples
from tests.ledger.made import Hold, Records, Scored

DUMPED = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'base' AND table_name <> 'version'"


def contents(path: Path) -> dict[str, list[str]]:
    """Every base table's rows, without their order."""
    with duckdb.connect(str(path), read_only=True) as connection:
        names = sorted(name for (name,) in connection.execute(DUMPED).fetchall())
        return {name: sorted(map(str, connection.execute(f"FROM base.{name}").fetchall())) for name in names}


def test_the_same_records_again_change_nothing(found: Records, ledger: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.duckdb"
    assert Ledger(path).ingest([*found[:3], *found]) == len(found)
    before = contents(path)
    assert [table for table in before if not before[table]] == ["activity", "curves", "outputs"], "nothing is trained"
    assert Ledger(path).ingest(found) == 0
    assert contents(path) == before == contents(ledger)


def test_rebuilt_in_any_order_it_is_equal(found: Records, ledger: Path, tmp_path: Path) -> None:
    """Of a bundle, which is small and the same every time, and of loose files."""
    loose, rest, packed = tmp_path / "loose", tmp_path / "rest", tmp_path / "packed"
    for folder, part in ((loose, found[::2]), (rest, found[1::2])):
        folder.mkdir()
        for number, record in enumerate(reversed(part)):
            (folder / f"{number:03d}.done.json").write_text(json.dumps(record))
    (loose / ".half.json.123").write_text('{"format": 2, ')
    for name in ("packed", "again"):
        assert bundle(rest, tmp_path / name / "rest.jsonl.zst") == len(found[1::2])
    first, again = ((tmp_path / name / "rest.jsonl.zst").read_bytes() for name in ("packed", "again"))
    assert first == again and len(first) < sum(path.stat().st_size for path in rest.iterdir()) / 5
    path = tmp_path / "rebuilt.duckdb"
    assert Ledger(path).rebuild([packed, loose]) == len(found)
    assert contents(path) == contents(ledger)


def test_what_is_derived_is_the_same_however_few_documents_are_held_at_once(
    found: Records, ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "DOCUMENTS_AT_ONCE", 1)
    path = tmp_path / "parts.duckdb"
    Ledger(path).ingest(found)
    assert contents(path) == contents(ledger)


def at(days: int) -> dict[str, str]:
    return {"started_at": (samples.START + timedelta(days=days)).isoformat()}


def test_a_result_counts_before_a_failure_at_any_clock(scored: Scored, tmp_path: Path) -> None:
    score, _ = scored()
    failed = score | {"status": "failed", "reason": "out of memory", "result": None}
    path = tmp_path / "retry.duckdb"
    Ledger(path).ingest([failed | at(365)])
    assert query.run(path, "SELECT reason FROM failures").rows == (("out of memory",),)
    Ledger(path).ingest([score])
    assert query.run(path, "SELECT reason FROM failures").rows == ()
    assert query.run(path, "SELECT count(*) FROM scores").rows == ((1,),)
    assert query.run(path, "SELECT count(*) FROM base.records").rows == ((2,),)
    Ledger(path).ingest([failed | at(366)])
    assert query.run(path, "SELECT reason FROM failures").rows == ()


def test_of_two_results_the_one_that_arrived_last_counts(scored: Scored, hold: Hold) -> None:
    early, late = scored()[0] | at(-365), scored()[0]
    early["result"]["score"], late["result"]["score"] = 0.25, 0.75
    assert hold([late, early])("SELECT score FROM scores").rows == ((0.25,),)


def test_the_weights_of_a_result_count_before_those_of_a_failure(scored: Scored, hold: Hold) -> None:
    score, _ = scored()
    failed = score | {"status": "failed", "reason": "cut off", "result": None, "content": "other", "cell_id": "other"}
    assert hold([failed | at(-365), score | {"content": "own"}])("SELECT count(*) FROM scores").rows == ((1,),)


def test_a_locked_ledger_names_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "held.duckdb"
    script = f"import duckdb, sys; held = duckdb.connect({str(path)!r}); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin and holder.stdout
    try:
        holder.stdout.readline()
        with pytest.raises(LedgerError, match=rf"locked by process {holder.pid}\b.*0\.2 s"):
            Ledger(path, lock_timeout=0.2).ingest([{"format": 2}])
        with pytest.raises(LedgerError, match=rf"locked by process {holder.pid}\b"):
            query.run(path, "SELECT 1", lock_timeout=0.2)
    finally:
        holder.stdin.close()
        holder.wait()


def test_two_writers_wait_for_each_other(found: Records, tmp_path: Path) -> None:
    path = tmp_path / "shared.duckdb"
    cells = [record for record in found if record.get("stage") in ("storage", "make")][:4]
    script = (
        "import json, sys; from pathlib import Path; from sparsebench.ledger.store import Ledger\n"
        f"for record in json.load(sys.stdin): Ledger(Path({str(path)!r})).ingest([record])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True) for _ in range(2)]
    for writer, part in zip(writers, (cells[::2], cells[1::2]), strict=True):
        assert writer.stdin
        writer.stdin.write(json.dumps(part))
        writer.stdin.close()
    assert [writer.wait(600) for writer in writers] == [0, 0]
    assert query.run(path, "SELECT count(*) FROM base.records").rows == ((len(cells),),)


def test_what_is_not_a_ledger_is_refused(tmp_path: Path, found: Records) -> None:
    text, foreign = tmp_path / "notes.duckdb", tmp_path / "foreign.duckdb"
    text.write_text("not a database, but long enough to have a header of some kind" * 100)
    duckdb.connect(str(foreign)).execute("CREATE TABLE mine (a INTEGER)").close()
    for path, words in ((text, "not a valid DuckDB"), (foreign, "not a ledger of sparsebench")):
        with pytest.raises(LedgerError, match=words):
            Ledger(path).ingest(found[:1])
        with pytest.raises(LedgerError, match=words):
            query.run(path, "SELECT 1")
    with pytest.raises(LedgerError, match="no ledger at"):
        query.run(tmp_path / "absent.duckdb", "SELECT 1")
    assert not (tmp_path / "absent.duckdb").exists()
    for name in ("base.duckdb", "base.v2.duckdb"):
        with pytest.raises(UserError, match=f"a ledger cannot be named {name}"):
            Ledger(tmp_path / name).ingest(found[:1])


LINE = json.dumps(
    {"format": 2, "kind": "plan", "manifest": "m", "written_at": "2026-01-02T03:04:05+00:00", "cells": []}
)
PACKED = zstandard.compress(f"{LINE}\n".encode())
DAMAGED: list[tuple[str, bytes, str]] = [
    ("a.json", b'{"format": 2', "not JSON"),
    ("a.json", b'{"cell": 1}', "not a record"),
    ("a.json", b'{"format": 2, "stage": "storage"}', "a record without cell_id, key, status, variant, started_at"),
    ("a.json", b'{"format": 2, "kind": "plan", "cells": []}', "a record without manifest, written_at"),
    ("a.json", b'{"format": 99}', "record format 99, this program reads 2"),
    ("b.jsonl.zst", b"plain text", "not a whole zstd file"),
    *(("b.jsonl.zst", PACKED[:left], "not a whole zstd file") for left in (0, 40, -1)),
    ("b.jsonl.zst", zstandard.compress(f'{LINE}\n{{"format": 3}}\n'.encode()), "line 2: record format 3"),
]


@pytest.mark.parametrize(("name", "content", "words"), DAMAGED)
def test_a_damaged_file_of_records_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LedgerError, match=rf"{name}.*{words}"):
        Ledger(tmp_path / "x.duckdb").rebuild([tmp_path])
    with pytest.raises(UserError, match="nowhere: does not exist"):
        Ledger(tmp_path / "x.duckdb").rebuild([tmp_path / "nowhere"])


def failed(found: Records, cell: str) -> dict[str, Any]:
    """The record, without a checksum, of a cell of this id that failed."""
    record = next(record for record in found if record.get("stage") == "storage")
    kept = {key: value for key, value in record.items() if key not in ("checksum", "origin")}
    return kept | {"cell_id": cell, "key": cell, "status": "failed", "result": None}


AT = "2026-01-02T03:04:05.000+00:00"


def test_a_bundle_holds_what_its_manifest_asks_for(tmp_path: Path, found: Records) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    for name, cells in {"one": ["a", "b"], "two": ["b", "c"]}.items():
        plan = {
            "format": 2,
            "kind": "plan",
            "manifest": name,
            "written_at": AT,
            "cells": [{"cell_id": c} for c in cells],
        }
        (folder / f"plan-{name}.json").write_text(json.dumps(plan))
    for cell in "abc":
        record = failed(found, cell) | {"manifest": "one"}
        (folder / f"{cell}.failed.json").write_text(json.dumps(record))
    assert bundle(folder, tmp_path / "two.jsonl.zst", ["two"]) == 3
    found = list(read([tmp_path / "two.jsonl.zst"]))
    assert [record.get("cell_id") for record in found] == [None, "b", "c"]
    assert bundle(folder, tmp_path / "both.jsonl.zst") == 5
    assert bundle(tmp_path / "both.jsonl.zst", tmp_path / "again.jsonl.zst", ["two"]) == 3, "a bundle has plans too"
    with pytest.raises(UserError, match="three"):
        bundle(folder, tmp_path / "three.jsonl.zst", ["three"])
    assert not list(tmp_path.glob("*three*"))
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_in_the_folder_that_it_is_of_does_not_hold_itself(tmp_path: Path, found: Records) -> None:
    write(tmp_path, failed(found, "a"))
    out = tmp_path / "all.jsonl.zst"
    assert [bundle(tmp_path, out) for _ in range(2)] == [1, 1]


def test_a_run_goes_on_from_what_a_bundle_holds(tmp_path: Path, found: Records) -> None:
    first = next(record for record in found if record.get("stage") == "storage")
    second = next(record for record in found if record.get("stage") == "latency")
    cut = [sealed(record | {"status": "failed", "result": None}) for record in (first, second)]
    write(tmp_path / "theirs", cut[1])
    write(tmp_path / "theirs", first)
    older = tmp_path / "theirs" / f"{first['key']}.failed.json"  # left by a kill before this was removed
    older.write_text(json.dumps(cut[0], separators=(",", ":")))
    bundle(tmp_path / "theirs", tmp_path / "b.jsonl.zst")
    write(tmp_path / "ours", second)
    assert unbundle(tmp_path / "b.jsonl.zst", tmp_path / "ours") == (1, 1)
    assert statuses(tmp_path / "ours") == {first["key"]: "done", second["key"]: "done"}
    assert next(read([tmp_path / "ours" / f"{first['key']}.done.json"])) == first


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.done.json", "{}")
    assert not list(tmp_path.iterdir())


def test_catching_up_adds_what_a_kill_left_of_a_cell_that_a_stranger_had_done(
    tmp_path: Path, found: list[dict[str, Any]]
) -> None:
    path, folder = tmp_path / "ledger.duckdb", tmp_path / "records"
    ours, theirs = provenance.origin(tmp_path, create_it=True), "0123456789abcdef"
    record = next(record for record in found if record.get("stage") == "storage")
    Ledger(path).ingest([sealed(record | {"origin": theirs})])
    write(folder, sealed(record | {"origin": ours, "started_at": AT}))
    assert [Ledger(path).catch_up(folder) for _ in range(2)] == [1, 0]
    assert query.run(path, "SELECT own FROM base.records ORDER BY ALL").rows == ((False,), (True,))


def test_catching_up_leaves_what_a_bundle_brought_to_both(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    path, folder = tmp_path / "ledger.duckdb", tmp_path / "records"
    provenance.origin(tmp_path, create_it=True)
    theirs = sealed(
        next(record for record in found if record.get("stage") == "storage") | {"origin": "0123456789abcdef"}
    )
    Ledger(path).ingest([theirs])
    write(folder, theirs)
    assert Ledger(path).catch_up(folder) == 0


def test_catching_up_adds_the_second_failure_of_a_cell(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    path, folder = tmp_path / "ledger.duckdb", tmp_path / "records"
    origin = provenance.origin(tmp_path, create_it=True)
    record = next(record for record in found if record.get("stage") == "storage")
    for number, reason in enumerate(("out of memory", "no space")):
        started = (samples.START + timedelta(days=number)).isoformat()
        changes = {"status": "failed", "result": None, "reason": reason, "origin": origin, "started_at": started}
        write(folder, sealed(record | changes))
        if not number:
            Ledger(path).rebuild([folder])
    assert [Ledger(path).catch_up(folder) for _ in range(2)] == [1, 0]
    assert query.run(path, "SELECT reason FROM failures").rows == (("no space",),)


def test_a_batch_closes_before_it_exceeds_its_limit_and_holds_one_item_at_least() -> None:
    assert list(batched([3, 3, 4, 1, 12, 5], lambda number: number, 10)) == [[3, 3, 4], [1], [12], [5]]
    assert list(batched([], len, 10)) == []
