"""Small files that would cost minutes or gigabytes: each is refused by name, within a second and half a gigabyte."""

import bz2
import gc
import gzip
import io
import json
import lzma
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from sparsebench import benchmarks, bounded, records, sources
from sparsebench.benchmarks import cmudict
from sparsebench.benchmarks.pooling import read_pooling
from sparsebench.cli.run import run
from sparsebench.errors import ModelError, SourceError, UserError
from sparsebench.manifest.problems import ManifestError
from sparsebench.models.files.checkpoint import Checkpoint, shard_names
from sparsebench.models.random_weights import write_random
from sparsebench.plan.checks import load
from sparsebench.plan.expand import expand
from sparsebench.plan.preflight import PlanRequest
from sparsebench.plan.preflight import prepare as preflight
from sparsebench.plan.resolve import Lock
from sparsebench.sources.text import read_texts
from tests.adversarial import benign
from tests.adversarial.watch import refused

HEAD = "version: 1\nmodels:\n  - {name: m, source: hf:a/m, family: decoder}\n"


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone afterwards: what is in it is large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
MANIFESTS = {
    "aliases": (LAUGHS, "m.yaml:1:"),
    "unknown keys": ("".join(f"key{n}: 1\n" for n in range(4_500)), "m.yaml:1:"),
    "a huge key": (HEAD + f"? {'k' * 400_000}\n: 1\n", "m.yaml:4:"),
    "flow sequences": ("a: " + "[" * 100_000, "m.yaml:1:"),
    "block sequences": ("- " * 20_000 + "1", "m.yaml:1:"),
    "a huge scalar": (HEAD + f"name: {'x' * 450_000}\n", "m.yaml:4:"),
    "a huge method": (HEAD + f"variants: [{{prune: '{'x ' * 200_000}', sparsity: 0.5}}]\n", "m.yaml:4:"),
    "a huge file": (HEAD + "# " + "x" * 50_000_000, "m.yaml"),
    "one line of mistakes": (HEAD + "variants: [" + "{prune: nosuch}, " * 4_000 + "]", "m.yaml:4:"),
    "unknown tasks": (
        HEAD + "benchmarks: {decoder: [" + "{task: some_long_unknown_task_name_here}, " * 3_000 + "]}", "m.yaml:4:"
    ),
    "many shares": (
        HEAD + f"variants: [{{prune: magnitude, sparsity: {[n / 20_000 for n in range(4_500)]}}}]\n"
        f"runtime: {{sparsity: {[n / 20_000 + 1e-5 for n in range(4_500)]}}}\n", "m.yaml:5:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(case: str, tmp_path: Path) -> None:
    text, place = MANIFESTS[case]
    path = tmp_path / "m.yaml"
    path.write_text(text)
    benchmarks.task_names()  # their list is made once
    with refused(tmp_path / place, kind=ManifestError):
        load(path)


def test_of_many_problems_some_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(HEAD + "".join(f"key{n}: 1\n" for n in range(30)))
    with pytest.raises(ManifestError, match="and 10 more problems") as caught:
        load(path)
    assert str(caught.value).count("unknown key") == 20
    assert len(caught.value.problems) == 30


def test_lists_that_multiply_are_refused_before_they_are_written_out(tmp_path: Path) -> None:
    path, shares = tmp_path / "m.yaml", [n / 2000 for n in range(1, 1500)]
    swept = f"variants: [{{prune: magnitude, sparsity: {shares}, granularity: [row, layer]}}]\n"
    path.write_text(f"{HEAD}{swept}runtime: {{ranks: {list(range(1, 200))}}}\n")
    with refused(path, "variants", "cells", kind=ManifestError):
        preflight(PlanRequest(path))


def test_a_plan_may_be_longer_than_records_and_a_run_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tmp_path / "m.yaml", tmp_path / "records"
    path.write_text(HEAD.replace("hf:a/m", "path:m") + "variants: [{prune: magnitude, sparsity: [0.5, 0.6, 0.7]}]\n")
    (tmp_path / "m").mkdir()
    found = expand(load(path).manifest, "m", {"m": "r"})
    monkeypatch.setattr(bounded, "JSON_BYTES", 5_000)
    records.write_plan(folder, found.manifest, found.cells, "cpu")
    (plan,) = folder.iterdir()
    assert bounded.JSON_BYTES < plan.stat().st_size < bounded.PLAN_BYTES
    assert len(found.cells) == len(next(iter(records.read([folder])))["cells"])
    with refused(folder, "too long for a bundle"):
        records.bundle(folder, tmp_path / "b.jsonl.zst")
    with refused("other.json"):
        list(records.read([plan.rename(folder / "other.json")]))
    write_random(benign.LLAMA, tmp_path / "m", "decoder", "float32")
    monkeypatch.setattr(bounded, "CELLS", 5)
    with refused("11 cells", "at most 5", kind=UserError):
        run(path, ledger=tmp_path / "l.duckdb", device="cpu")


JSONS = {
    "lists": "[" * 200_000,
    "objects": '{"a":' * 200_000,
    "closed lists": "[" * 900 + "]" * 900,
    "values": "[" + "[]," * 10_000_000 + "[]]",
    "size": '{"a": "' + "x" * 101_000_000 + '"}',
}
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config.json": ("config.json", lambda path: Checkpoint(path.parent).config),
    "config.json of a source": (
        "config.json", lambda path: sources.read_config(sources.parse(f"path:{path.parent}"), sources.Cache())
    ),
    "index": ("model.safetensors.index.json", shard_names),
    "pooling": ("modules.json", lambda path: read_pooling(path.parent)),
    "record": ("r.json", lambda path: list(records.read([path]))),
    "lock": ("m.lock", Lock),
    "text": ("t.json", read_texts),
    "lines": ("t.jsonl", read_texts),
    "dictionary": ("cmudict.dict", cmudict.read),
    "plain text": ("t.txt", lambda path: read_texts(path, "f")),
    "columns": ("t.csv", read_texts),
}  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "content"),
    [("config.json", content) for content in JSONS] + [(one, big) for one in READERS for big in ("closed lists", "size")][2:],
)  # fmt: skip
def test_json(reader: str, content: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    path = tmp_path / name
    path.write_text(JSONS[content])
    with refused(path):
        read(path)


def test_finalizers_of_others_do_not_run_where_recursion_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finalized:
        """Garbage once nobody names it; its end needs some recursion of its own."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            (lambda: (lambda: (lambda: None)())())()

    failed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", failed.append)
    path = tmp_path / "config.json"
    path.write_text(JSONS["lists"])
    often = gc.get_threshold()
    gc.freeze()  # what other tests have left would be looked through in each collection
    try:
        for lists in range(600, 1_000, 5):  # somewhere there a collection begins just where the recursion ends
            gc.set_threshold(0)
            gc.collect()
            garbage = [Finalized() for _ in range(20)]
            del garbage
            gc.set_threshold(lists)
            with pytest.raises(ModelError, match="nested"):
                bounded.read_json(path)
    finally:
        gc.set_threshold(*often)
    assert not failed


@cache
def squeezed(suffix: str, plain: bytes, times: int) -> bytes:
    """``plain`` many times over, compressed."""
    if suffix == ".gz":
        return gzip.compress(plain, 6) * times
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as packed:
        for _ in range(times):
            packed.write(plain)
    return out.getvalue()


PLAIN = {"zeros": bytes(4_000_000), "rows": b'{"text": "a"}\n' * 300_000, "blank lines": b"\n" * 4_000_000}


@pytest.mark.parametrize(
    ("kind", "suffix", "plain"),
    [("jsonl", suffix, plain) for suffix in (".gz", ".zst") for plain in PLAIN]
    + [(kind, ".gz", "zeros") for kind in ("json", "csv", "txt")],
)
def test_compressed_text(kind: str, suffix: str, plain: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{kind}{suffix}"
    path.write_bytes(squeezed(suffix, PLAIN[plain], 60))
    with refused(path):
        read_texts(path)


@pytest.mark.parametrize("name", ["r.json.zst", "r.jsonl.zst"])
def test_compressed_records(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(squeezed(".zst", bytes(4_000_000), 1000))
    assert path.stat().st_size < 500_000
    with refused(path):
        list(records.read([tmp_path]))
    path.write_bytes(squeezed(".zst", b'{"format": 1, "cell_id": "a"', 1) * 3)
    with refused(path):
        list(records.read([tmp_path]))


PACKED = gzip.compress(random.Random(0).randbytes(5000).hex().encode())
NO_TEXT = {
    "cut.txt.gz": PACKED[:40], "changed.txt.gz": PACKED[:2000] + bytes(100) + PACKED[2100:], "plain.txt.gz": b"plain text",
    "latin-1.txt": b"twelve bytes" * 10_000 + b"\xe9",
    "not unpacked.jsonl.xz": lzma.compress(bytes(1000)), "not unpacked.bz2": bz2.compress(bytes(1000)),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(NO_TEXT[name])
    with refused(tmp_path / name, *["0xe9"] * name.startswith("latin"), kind=SourceError):
        read_texts(tmp_path / name)


@pytest.mark.parametrize("what", ["fifo", "folder", "/dev/zero", "/dev/urandom"])
def test_what_is_no_file_is_no_text(what: str, tmp_path: Path) -> None:
    path = tmp_path / what  # which a path from the root replaces
    if what in ("fifo", "folder"):
        (os.mkfifo if what == "fifo" else os.mkdir)(path)
    with refused(path, kind=SourceError):
        read_texts(path)


@pytest.mark.parametrize("form", ["parquet", "dictionary.parquet", "arrow", "stream.arrow", "repeated.arrow"])
def test_columns(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{form}"
    rows = pa.table({"text": pa.array(["a" * 200_000] * 100)})
    if form.endswith("parquet"):
        repeated = form.startswith("dictionary")
        pq.write_table(rows, path, compression="zstd", use_dictionary=repeated, dictionary_pagesize_limit=1 << 24)
    else:
        if form.startswith("repeated"):
            rows = pa.table({"text": pa.array(["a" * 200_000] * 100).dictionary_encode()})
        make = pa.ipc.new_stream if form.startswith("stream") else pa.ipc.new_file
        with make(str(path), rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
            file.write_table(rows)
    del rows
    with refused(path, kind=SourceError):
        read_texts(path)


@pytest.mark.parametrize("form", ["list", "struct", "run ends", "named"])
def test_values_that_many_places_of_one_row_share(form: str, tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    values, places = pa.array(["some words " * 50_000]), 2_000
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * places, pa.int32()), values)
    if form == "run ends":
        shared = pa.RunEndEncodedArray.from_arrays(pa.array([places], pa.int32()), values)
    column = pa.ListArray.from_arrays(pa.array([0, places], pa.int32()), shared)
    if form == "struct":
        column = pa.StructArray.from_arrays([column], ["a\n"])
    elif form == "named":
        column = pa.ExtensionArray.from_storage(pa.opaque(shared.type, "a", "b"), shared)
    rows = pa.table({"text": column})
    with pa.ipc.new_file(str(path), rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(rows)
    del rows, column, shared
    with refused(path, kind=SourceError):
        read_texts(path)


def test_real_sizes_pass(tmp_path: Path) -> None:
    index, shard = tmp_path / "model.safetensors.index.json", "model-00001-of-00163.safetensors"
    names = (f"model.layers.{n}.mlp.experts.{n}.down_proj.weight" for n in range(91_000))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    assert shard_names(index) == (shard,)
    text = tmp_path / "t.jsonl.gz"
    text.write_bytes(gzip.compress(b"".join(b'{"text": "document %d of many"}\n' % n for n in range(50_000))))
    assert len(read_texts(text).rows) == 50_000
