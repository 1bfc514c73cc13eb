"""Folders of lm-eval's task files beside the data of one's own."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sparsebench.benchmarks.folder import definitions
from sparsebench.benchmarks.folder_task import read_table
from sparsebench.errors import BenchmarkError, UnsupportedError
from tests.benchmarks.conftest import sentence
from tests.benchmarks.own_data import DRAW, scored, written
from tests.benchmarks.test_generation import speller  # noqa: F401
from tests.benchmarks.test_harness import poisoned

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "own-benchmark.md").read_text(encoding="utf-8")
TASK = PAGE.split("~~~yaml\n")[1].split("~~~")[0].replace(": answer", ": right")
TASK = TASK.replace("{{question}}", "{{q}} {{'the' if q else ''}}")
"""The page's task over records with a question ``q`` and an answer ``right``."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one task, its data beside it."""
    (tmp_path / "tasks" / "data").mkdir(parents=True)
    records = [{"q": sentence(DRAW), "options": ["cat", "dog", "tree"], "right": place % 3} for place in range(9)]
    written(tmp_path / "tasks" / "data" / "capitals.jsonl", records)
    (tmp_path / "tasks" / "capitals.yaml").write_text(TASK)
    return tmp_path / "tasks"


def test_a_task_of_a_folder_is_found_by_name_and_its_data_beside_it(tiny_llama: Path, folder: Path) -> None:
    found = scored(tiny_llama, "decoder", "capitals", folder)
    assert (found.task, found.metric, found.n) == ("capitals", "acc", 9)
    assert found.chance == pytest.approx(1 / 3)
    with pytest.raises(BenchmarkError, match="no task 'capitols'.*\n?.*did you mean `capitals`"):
        scored(tiny_llama, "decoder", "capitols", folder)


def test_groups_includes_and_examples_of_a_folder_are_lm_evals(tiny_llama: Path, folder: Path) -> None:
    (folder / "_base.yaml").write_text((folder / "capitals.yaml").read_text().replace("task: capitals\n", ""))
    (folder / "capitals.yaml").unlink()
    for name in ("one", "two"):
        text = f"include: _base.yaml\ntask: {name}\ntag: tagged\ndescription: '{name} '\n"
        (folder / f"{name}.yaml").write_text(text)
    for name, tasks in {"both": "[one, {task: two, num_fewshot: 2, fewshot_split: test}]", "each": "[tagged]"}.items():
        metric = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]"
        (folder / f"{name}.yaml").write_text(f"group: {name}\ntask: {tasks}\n{metric}\n")
    alone = {name: scored(tiny_llama, "decoder", name, folder) for name in ("one", "two", "both", "each")}
    assert [alone[name].n for name in alone] == [9, 9, 18, 18]
    shown = {name: [outcome.doc_hash for outcome in alone[name].outcomes] for name in alone}
    assert shown["each"] == shown["one"] + shown["two"] and shown["both"][:9] == shown["one"]
    assert not set(shown["both"][9:]) & set(shown["two"])


def test_a_mean_of_means_is_refused_also_where_a_document_is_not_finite(
    tiny_llama: Path, folder: Path, tmp_path: Path
) -> None:
    lines = (folder / "data" / "capitals.jsonl").read_text().splitlines(keepends=True)
    (folder / "data" / "few.jsonl").write_text("".join(lines[:4]))
    task = (folder / "capitals.yaml").read_text()
    (folder / "few.yaml").write_text(task.replace("task: capitals", "task: few").replace("capitals.jsonl", "few.jsonl"))
    metric = "aggregate_metric_list: [{metric: acc, weight_by_size: false}]"
    (folder / "both.yaml").write_text(f"group: both\ntask: [capitals, few]\n{metric}\n")
    broken = poisoned(tiny_llama, tmp_path / "broken", json.loads(lines[0])["q"].split()[0])
    assert scored(broken, "decoder", "capitals", folder).protocol["non_finite"]
    for model in (tiny_llama, broken):
        with pytest.raises(UnsupportedError, match="both.*mean over"):
            scored(model, "decoder", "both", folder)


ROWS = [
    {"q": "a, b", "right": 1, "share": 0.5, "told": True, "options": ["x", "y"], "more": {"a": [1], "b": None}},
    {"q": 'say "no"', "right": 0, "share": None, "told": False, "options": [], "more": {"a": [], "b": "z"}},
]


@pytest.mark.parametrize(
    "kind", ["json", "json list", "json.gz", "csv", "tsv", "no header", "parquet", "arrow", "text"]
)
def test_a_folder_is_read_as_datasets_reads_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    flat = rows.remove_columns(["options", "more"]).to_pandas()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    settings: dict[str, Any] = {"tsv": {"delimiter": "\t"}, "no header": {"column_names": [*"abcd"], "header": None}}
    settings = settings.get(kind, {})
    names = {"json": "x.jsonl", "json list": "x.json", "json.gz": "x.jsonl.gz", "no header": "x.csv", "text": "x.txt"}
    path = tmp_path / names.get(kind, f"x.{kind}")
    if kind == "json.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind in ("json", "json list", "text"):
        path.write_text({"json": lines, "json list": json.dumps(ROWS), "text": "one\n\n two \n"}[kind])
    elif kind == "parquet":
        rows.to_parquet(path)
    elif kind == "arrow":
        rows.save_to_disk(tmp_path / "saved")
        (path,) = (tmp_path / "saved").glob("*.arrow")
    else:
        flat.to_csv(path, index=False, sep=settings.get("delimiter", ","), header=kind != "no header")
    builder = kind.split()[0].removesuffix(".gz") if kind not in ("tsv", "no header") else "csv"
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    wanted = datasets.load_dataset(builder, data_files={"test": str(path)}, cache_dir=str(tmp_path / "c"), **settings)
    found = read_table(path, builder, settings)
    assert found.to_list() == wanted["test"].to_list()
    assert len(found) == (3 if kind == "text" else 2)


@pytest.mark.parametrize(
    ("text", "key"), [("task: t{n}\ninclude: {next}.yaml\n", "include"), ("group: t{n}\ntask: [t{next}]\n", "group")]
)
def test_what_is_nested_too_deep_for_python_is_refused(text: str, key: str, tmp_path: Path) -> None:
    for number in range(1200):
        (tmp_path / f"{number}.yaml").write_text(text.format(n=number, next=number + 1))
    (tmp_path / "1200.yaml").write_text("task: t1200\n")
    with pytest.raises(BenchmarkError, match=f"`{key}`.* more than 100 "):
        definitions(tmp_path, "t0")


def test_a_hint_names_each_kind_of_value_once(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("task: t\ngeneration_kwargs: {temperature: warm}\n")
    with pytest.raises(BenchmarkError, match="→ it is a number$"):
        definitions(tmp_path, "t")


def test_the_last_suffix_decides_how_a_table_is_split(tmp_path: Path) -> None:
    for name, mark in (("answers.tsv.cleaned.csv", ","), ("answers.csv.TSV", "\t"), ("answers.tsv.gz", "\t")):
        content = f"q{mark}right\nwhy{mark}1\n".encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert read_table(tmp_path / name, "csv", {}).to_list() == [{"q": "why", "right": 1}]
