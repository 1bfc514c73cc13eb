"""Texts out of every kind of data file, and what a person is told when a file is not what was meant."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsebench.errors import SourceError
from sparsebench.sources.text import read_records, read_texts

ROWS = [
    {"id": place, "doc": {"passage": f'passage {place}, "quoted"\nand more'}, "text": f"t{place}"} for place in range(7)
]


def arrow(path: Path, rows: list[dict[str, Any]], stream: bool = True, batch: int = 3) -> Path:
    table = pa.Table.from_pylist(rows)
    opened = (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema)
    with opened as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def text_file(path: Path, text: str) -> Path:
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(text.encode()))
    return path


def jsonl(rows: list[Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n\n"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "a.jsonl": lambda path: text_file(path, jsonl(ROWS)),
    "a.jsonl.gz": lambda path: text_file(path, jsonl(ROWS)),
    "a.jsonl.zst": lambda path: text_file(path, jsonl(ROWS)),
    "a.ndjson": lambda path: text_file(path, jsonl(ROWS)),
    "a.json": lambda path: text_file(path, json.dumps(ROWS, indent=1)),
    "a.json.gz": lambda path: text_file(path, json.dumps(ROWS)),
    "c4.json.gz": lambda path: text_file(path, jsonl(ROWS)),
    "a.arrow": lambda path: arrow(path, ROWS),
    "file.arrow": lambda path: arrow(path, ROWS, stream=False),
    "a.parquet": lambda path: parquet(path, ROWS),
    "A.PARQUET": lambda path: parquet(path, ROWS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_texts(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name)
    assert read_texts(path, "doc.passage").rows == tuple((row["doc"]["passage"],) for row in ROWS)
    assert read_texts(path).rows == tuple((row["text"],) for row in ROWS), "`text` where no field is named"
    assert read_texts(path, "text", "doc.passage").rows == tuple((r["text"], r["doc"]["passage"]) for r in ROWS)


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("csv.gz", ",")])
def test_tables_of_text(suffix: str, delimiter: str, tmp_path: Path) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["text", "n"], ["a, b\tc", "1"], ["second\nline", "2"]])
    path = text_file(tmp_path / f"a.{suffix}", out.getvalue())
    assert read_texts(path).rows == (("a, b\tc",), ("second\nline",))


def test_a_table_may_hold_long_documents_begin_with_blank_lines_and_have_been_a_tsv(tmp_path: Path) -> None:
    document = "a word " * 20_000
    path = text_file(tmp_path / "export.tsv.csv", f'\n\nlabel,text\n1,"{document}"\n')
    assert read_texts(path).rows == ((document,),)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("one\ntwo\n\n  \nthree\n", ["one\ntwo", "three"]),
        ("one\ntwo\nthree", ["one", "two", "three"]),
        ("\n\none\ntwo\n\n", ["one", "two"]),  # blank lines around a text part nothing
        (" = Title = \n \n A line . \n", [" = Title = ", " A line . "]),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.raw", "a", "a.txt.gz"])
def test_plain_text_is_paragraphs_or_lines(text: str, found: list[str], name: str, tmp_path: Path) -> None:
    assert list(read_records(text_file(tmp_path / name, text))) == found


def test_empty_and_repeated_texts_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [{"text": text} for text in ("a", "b", "a", " \n", "a", "", "c")] + [{"text": None}]
    found = read_texts(text_file(tmp_path / "a.jsonl", jsonl(rows)))
    assert (found.rows, found.empty, found.repeated) == ((("a",), ("b",), ("c",)), 3, 2)
    assert read_texts(arrow(tmp_path / "a.arrow", rows)) == found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8))
def test_nothing_is_lost_or_changed(texts: list[str], tmp_path: Path) -> None:
    rows = [{"doc": {"story": text}} for text in texts]
    wanted = list(dict.fromkeys(text for text in texts if text.strip()))
    for path in (text_file(tmp_path / "p.jsonl.gz", jsonl(rows)), arrow(tmp_path / "p.arrow", rows)):
        if wanted:
            found = read_texts(path, "doc.story")
            assert [text for (text,) in found.rows] == wanted
            assert found.empty + found.repeated + len(found.rows) == len(texts)
        else:
            with pytest.raises(SourceError, match="holds no text"):
                read_texts(path, "doc.story")


def test_a_list_on_the_way_yields_each_of_its_entries(tmp_path: Path) -> None:
    squad = {"data": [{"paragraphs": [{"context": "a"}, {"context": "b"}]}, {"paragraphs": [{"context": "c"}]}]}
    path = text_file(tmp_path / "squad.json", json.dumps(squad))
    assert read_texts(path, "data.paragraphs.context").rows == (("a",), ("b",), ("c",))
    pairs = text_file(tmp_path / "p.json", json.dumps({"en": ["a", "b"], "de": ["c", "d"], "fr": ["e"]}))
    assert read_texts(pairs, "en", "de").rows == (("a", "c"), ("b", "d"))
    with pytest.raises(SourceError, match=r"different numbers of texts \(en 2, fr 1\)"):
        read_texts(pairs, "en", "fr")
    assert read_texts(text_file(tmp_path / "texts.json", '["a", "b"]')).rows == (("a",), ("b",))


def test_a_dot_in_a_name_is_part_of_it_where_such_a_field_exists(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.jsonl", jsonl([{"doc.passage": "whole", "doc": {"passage": "nested"}}]))
    assert read_texts(path, "doc.passage").rows == (("whole",),)
    flat = [{"doc": "left", "doc.passage": "whole"}]
    for columnar in (parquet(tmp_path / "a.parquet", flat), arrow(tmp_path / "a.arrow", flat)):
        assert read_texts(columnar, "doc.passage").rows == (("whole",),)


@pytest.mark.parametrize("name", [name for name in WRITERS if name.startswith("a.")])
def test_a_missing_field_names_the_file_the_field_and_what_there_is(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name)
    with pytest.raises(SourceError) as caught:
        read_texts(path, "txet")
    assert str(path) in caught.value.message and "'txet'" in caught.value.message
    assert "did you mean `text`?" in str(caught.value.hint) and "id, doc, text" in str(caught.value.hint)
    with pytest.raises(SourceError) as caught:
        read_texts(path, "doc.pasage")
    assert "'doc.pasage'" in caught.value.message and "did you mean `doc.passage`?" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "text", "fields", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ', [], r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1, 2]\n", [], r"a\.jsonl:1: a list"),
        ("a.jsonl", '{"text": 3}', [], "record 1: its field 'text' is a int, not text"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', [], "record 2: no field 'text'"),
        ("a.jsonl", '{"doc": "a"}', ["doc.passage"], "no field 'doc.passage'"),
        ("a.jsonl", '"a text"', ["passage"], "a text by itself"),
        ("a.json", '["a text"]', ["text", "target"], "without a field 'target'"),
        ("a.jsonl", '"a text"', ["text", "target"], "without a field 'target'"),
        ("a.txt", "a text", ["text", "target"], "no field 'target'"),
        ("a.json", "{", [], "not JSON"),
        ("a.txt", "a", ["passage"], "plain text has no field 'passage'"),
        ("a.txt", " \n\n", [], "holds no text"),
        ("a.jsonl", "", [], "holds no text"),
        ("a.arrow", "no arrow", ["text"], "not readable as Arrow"),
        ("a.parquet", "no parquet", ["text"], "not readable as Parquet"),
        ("a.jsonl", jsonl([{"text": "x" * 100_001 + " y"}]), [], "record 1: a word of more than 100,000 characters"),
        ("a.jsonl", jsonl([{"text": "a \ud800 b"}]), [], "half of a surrogate pair"),
    ],
)
def test_what_is_wrong_is_said(name: str, text: str, fields: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        read_texts(text_file(tmp_path / name, text), *fields)


def test_bytes_that_are_no_text_and_folders_are_refused(tmp_path: Path) -> None:
    rows = jsonl(ROWS).encode()
    for name, content, message in (
        ("model.bin", b"\xff\xfe\x00\x80" * 9, r"model\.bin: not UTF-8"),
        ("cut.jsonl.gz", gzip.compress(rows)[:40], r"cut\.jsonl\.gz: not a whole gzip file"),
        ("cut.jsonl.zst", zstandard.compress(rows)[:-3], "not a whole zstd file"),
        ("plain.txt.gz", b"not zipped", "not a whole gzip file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=message):
            read_texts(tmp_path / name)
    with pytest.raises(SourceError, match="a folder"):
        read_texts(tmp_path)


@pytest.mark.parametrize("write", [pq.write_table, pa.feather.write_feather])
def test_a_time_beyond_all_calendars_is_named(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / ("t.parquet" if write is pq.write_table else "t.arrow")
    write(pa.table({"text": ["x"], "when": pa.array([2**62], pa.timestamp("us"))}), path)
    assert read_texts(path).rows == (("x",),)
    with pytest.raises(SourceError, match="not readable as .* \\(date value out of range"):
        list(read_records(path))


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    for path in (arrow(tmp_path / "a.arrow", ROWS), parquet(tmp_path / "a.parquet", ROWS)):
        assert next(iter(read_records(path, "doc.passage"))).keys() == {"doc"}
