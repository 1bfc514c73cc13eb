"""The stranger's way: a model and a file of their own, from `init` to the variant that fits."""

import csv
import json
import random
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparsebench.benchmarks.own import KINDS
from sparsebench.ledger.store import Ledger
from sparsebench.models.files.text import load_tokenizer
from sparsebench.plan.draft import draft
from sparsebench.sources import Cache, parse, read_config
from tests.benchmarks.conftest import sentence
from tests.command import call, succeed
from tests.ledger import samples
from tests.manifest.loading import load_text

NAMES = ("negative", "positive")


@pytest.fixture(scope="module")
def bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a head for two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("home") / "my-bert"
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(tiny_bert, id2label=dict(enumerate(NAMES)), num_labels=2)
    model = BertForSequenceClassification(config)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    load_tokenizer(tiny_bert).save_pretrained(folder)
    return folder


def reviews(folder: Path, path: Path, documents: int = 60) -> Path:
    """A CSV whose labels are mostly what the model says."""
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), load_tokenizer(folder)
    draw = random.Random(1)
    texts = [sentence(draw, 4, 20) for _ in range(documents)]
    with torch.no_grad():
        best = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "review", "sentiment"])
        for number, (text, chosen) in enumerate(zip(texts, best, strict=True)):
            rows.writerow([number, text, NAMES[chosen if number % 8 else 1 - chosen]])
    return path


def chosen(home: Path, *words: str) -> Any:
    """The rows that are chosen, the smallest first."""
    asked = succeed("choose", *words, "--json", cwd=home)
    rows = json.loads(asked.stdout)
    shares = [round(row["share"], 2) for row in rows]
    assert rows and shares == sorted(shares)
    return rows


@pytest.mark.long  # a minute: eight variants are made, scored and exported
def test_from_a_model_and_a_file_to_the_variant_that_fits(bert: Path, tmp_path: Path) -> None:
    home = bert.parent
    reviews(bert, home / "reviews.csv")
    succeed("init", "mine.yaml", "--model", "my-bert", "--data", "reviews.csv", cwd=home)
    written = yaml.safe_load((home / "mine.yaml").read_text())
    assert [task["task"] for task in written["benchmarks"]["encoder"]] == ["classify", "classify"]
    assert written["benchmarks"]["encoder"][0]["columns"] == {"text": "review", "label": "sentiment"}
    # Without wanda, which reads a text from the package index, and without times.
    written["variants"] = [entry for entry in written["variants"] if entry.get("prune") != "wanda"]
    del written["runtime"]
    (home / "mine.yaml").write_text(yaml.safe_dump(written))
    succeed("run", "mine.yaml", cwd=home)
    rows = chosen(home, "--model", "my-bert", "--max-bytes", "90%", "--max-loss", "100")
    assert all(row["share"] <= 0.9 and row["loss"] <= 100 for row in rows)
    again = shlex.split(rows[0]["make"])
    succeed(*again[1:-1], tmp_path / "again", cwd=home)
    for row in {row["name"]: row for row in rows if row is rows[0] or "int8" in row["name"]}.values():
        out = tmp_path / row["name"].replace("/", "-")
        succeed(*shlex.split(row["export"])[1:-1], out, cwd=home)
        assert (out / "tokenizer.json").is_file() and (out / "config.json").is_file()
    shutil.rmtree(Cache().root / "work" / "packed")
    gone = call("export", rows[0]["name"], "--out", tmp_path / "gone", cwd=home)
    assert gone.returncode == 2 and rows[0]["make"] in gone.stderr
    tight = call("choose", "--model", "my-bert", "--max-bytes", "1%", cwd=home)
    assert tight.returncode == 1 and "no variant fits" in tight.stderr and "my-bert" not in tight.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ledger of two models."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "ledger").mkdir()
    Ledger(folder / "ledger" / "sparsebench.duckdb").ingest(samples.sample(samples.small()))
    return folder


def test_what_fits_comes_smallest_first(measured: Path) -> None:
    rows = chosen(measured, "--model", "smol", "--max-bytes", "95%", "--max-loss", "60")
    assert all(row["share"] <= 0.95 and row["loss"] <= 60 and "random" not in row["recipe"] for row in rows)
    assert all("sparsebench apply" in row["make"] and "sparsebench export" in row["export"] for row in rows)


@pytest.mark.parametrize(
    ("words", "culprits"),
    [
        (("--model", "smoll"), ("smoll", "smol")),
        (("--model", "smol", "--max-bytes", "300"), ("300", "60%")),
        (("--model", "smol", "--max-loss", "900"), ("--max-loss", "900")),
        (("--model", "smol", "--engine", "hff"), ("hff", "hf")),
        (("--model", "smol", "--engine", "skip"), ("skip", "sparsebench sql")),
    ],
)
def test_what_cannot_be_chosen_from_is_named(words: tuple[str, ...], culprits: tuple[str, ...], measured: Path) -> None:
    asked = call("choose", *words, cwd=measured)
    assert asked.returncode == 2 and all(culprit in asked.stderr for culprit in culprits), asked.stderr


COLUMNS = {
    "classify": "review,stars\na cat,1\n",
    "probe": "sentence,class\na cat,1\n",
    "similarity": "sentence1,sentence2,score\na cat,a dog,2\n",
    "choices": "question,options,answer\na cat,x,0\n",
    "generation": "question,answer\na cat,a dog\n",
    "perplexity": "text\na cat\n",
}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("bert", "classify"), ("tiny_bert", "probe"), ("tiny_bert", "similarity"), ("tiny_llama", "choices"),
        ("tiny_llama", "generation"), ("tiny_llama", "perplexity"), ("tiny_t5", "generation"),
    ],
)  # fmt: skip
def test_the_task_follows_from_model_and_columns(model: str, kind: str, request: Any, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(COLUMNS[kind])
    source, data = parse(f"path:{request.getfixturevalue(model)}"), parse(f"path:{tmp_path / 'data.csv'}")
    family = {"tiny_llama": "decoder", "tiny_t5": "encoder-decoder"}.get(model, "encoder")
    text = draft(source, family, read_config(source, Cache()) or {}, data, tmp_path, {})
    loaded = load_text(text, str(tmp_path / "mine.yaml"))
    (task, *_) = loaded.manifest.benchmarks.of(family)
    assert task.task == kind and task.source == "path:data.csv"
    named = {part: (task.columns or {}).get(part, part) for part in KINDS[kind].columns}
    assert {*named.values()} <= {*COLUMNS[kind].splitlines()[0].split(",")}


@pytest.mark.parametrize(
    ("words", "text", "culprits"),
    [
        (("--data", "gone.csv"), "a,b\n", ("gone.csv",)),
        (("--data", "data.csv"), "a,b\nx,y\n", ("data.csv", "a, b", "--columns")),
        (("--data", "data.csv"), "", ("data.csv", "no record")),
        (("--data", "data.csv"), "text,label\na cat,angry\n", ("angry", "negative, positive", "labels:")),
        (("--data", "data.csv", "--columns", "text: body"), "a,b\nx,y\n", ("body", "a, b")),
        (("--data", "data.csv", "--columns", "text"), "text,label\na,1\n", ("--columns", "such as")),
        (("--data", "data.csv", "--columns", "txt: b"), "text,b,label\na,b,negative\n", ("txt", "text")),
        (("--data", "."), "text,label\na,1\n", ("folder", "name the file")),
        (("--data", "data.csv", "--family", "encodr"), "text,label\na,1\n", ("encodr", "encoder")),
        (("--data", "data.csv", "--model", "other"), "text,label\na,1\n", ("other",)),
        (("--data", "data.csv", "--label", "calm"), "text,label\na cat,angry\n", ("angry", "calm")),
        ((), "", ("--data", "--model")),
    ],
)
def test_init_names_what_does_not_fit(words: Any, text: str, culprits: Any, bert: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(text)
    refused = call("init", "mine.yaml", "--model", str(bert), *words, cwd=tmp_path)
    assert refused.returncode == 2 and not (tmp_path / "mine.yaml").exists()
    assert all(culprit in refused.stderr for culprit in culprits), refused.stderr


def test_the_outputs_of_a_head_can_be_named(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\na cat,calm\na dog,angry\n")
    words = ("--model", str(bert), "--data", "data.csv", "--label", "angry", "--label", "calm")
    succeed("init", "mine.yaml", *words, cwd=tmp_path)
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["models"][0]["labels"] == ["angry", "calm"]
    succeed("plan", "mine.yaml", cwd=tmp_path)


def test_a_text_alone_is_a_perplexity(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a cat\n\na dog\n")
    succeed("init", "mine.yaml", "--model", str(tiny_llama), "--data", "notes.txt", cwd=tmp_path)
    written = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert written["benchmarks"]["decoder"][0]["task"] == "perplexity"
    shutil.copytree(tiny_llama, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
    succeed("init", "short.yaml", "--model", "short", "--data", "notes.txt", cwd=tmp_path)
    (workload,) = yaml.safe_load((tmp_path / "short.yaml").read_text())["runtime"][0]["workloads"]
    assert workload["prompt"] + workload["generate"] <= 20
    (tmp_path / "Model.GGUF").write_bytes(b"GGUF")
    succeed("init", "gguf.yaml", "--model", "path:Model.GGUF", "--data", "notes.txt", cwd=tmp_path)
    words = ("--model", str(tiny_llama), "--family", "encoder", "--data", "notes.txt")
    encoder = call("init", "it.yaml", *words, cwd=tmp_path)
    assert encoder.returncode == 2 and "no columns" in encoder.stderr
