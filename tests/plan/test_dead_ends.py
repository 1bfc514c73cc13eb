"""Mistakes that a newcomer makes: each is named, with a way out, before anything is fetched or run."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparsebench import environment, processor
from tests.adversarial import benign
from tests.command import call, succeed

MANIFEST = (
    "version: 1\nmodels: [{{name: m, source: '{source}', family: {family}}}]\nbenchmarks:\n  {family}:\n    - {task}\n"
)


def planned(folder: Path, source: str, family: str, task: str) -> Any:
    (folder / "mine.yaml").write_text(MANIFEST.format(source=source, family=family, task=task))
    return call("plan", "mine.yaml", "--offline", cwd=folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a headless BERT, one with a head, one whose head gives a number, and files of data."""
    head = {"architectures": ["BertForSequenceClassification"]}
    heads = {
        "plain": {"architectures": ["BertModel"]},
        "head": head | {"id2label": {"0": "negative", "1": "positive"}},
        "number": head | {"id2label": {"0": "LABEL_0"}},
        "several": head | {"problem_type": "multi_label_classification", "id2label": {"0": "a", "1": "b"}},
        "bits": {"quantization_config": {"quant_method": "gptq"}},
    }
    for name, changes in heads.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(benign.BERT | changes))
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    files = {"reviews.csv": "text,label\na cat,positive\n", "angry.csv": "text,label\na cat,positive\na dog,angry\n",
             "other.csv": "review,stars\na cat,5\n", "empty.csv": "text,label\n", "empty.txt": ""}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


MISTAKES = [
    ("path:head", "encoder", "{task: glue_sst2, source: path:reviews.csv}", ("reviews.csv", "take a file", "classify")),
    ("path:head", "encoder", "{task: clasify, source: path:reviews.csv}", ("clasify", "did you mean `classify`")),
    ("path:head", "encoder", "{task: classify, source: path:angry.csv}", ("angry", "negative, positive", "labels:")),
    ("path:head", "encoder", "{task: classify, source: path:other.csv}", ("'text'", "review, stars", "columns")),
    ("path:head", "encoder", "{task: classify, source: path:empty.csv}", ("empty.csv", "holds no record")),
    ("path:plain", "encoder", "{task: pseudo_perplexity, source: path:empty.txt}", ("empty.txt", "holds no record")),
    ("path:head", "encoder", "{task: classify, source: path:reviews.csv, metric: f1}", ("f1", "macro_f1")),
    ("path:head", "encoder", "{task: classify, source: path:reviews.csv, metric: pearson}", ("chooses a class", "acc")),
    ("path:number", "encoder", "{task: classify, source: path:reviews.csv}", ("gives a number", "spearman")),
    ("path:several", "encoder", "{task: classify, source: path:reviews.csv}", ("several classes", "one class")),
    ("path:several", "encoder", "{task: classify, source: path:reviews.csv, metric: pearson}", ("several numbers",)),
    ("path:plain", "encoder", "{task: classify, source: path:reviews.csv}", ("sequence-classification head", "BertModel")),
    ("path:head", "encoder", "{task: piqa}", ("masked-language-model head", "classify")),
    ("path:head", "decoder", "{task: piqa}", ("`decoder`", "`encoder`")),
    ("path:bits", "encoder", "{task: sciq_retrieval}", ("path:bits", "quantized", "score")),
    ("smollm2-135m", "encoder-decoder", "{task: piqa}", ("smollm2-135m", "another family", "`decoder`")),
]  # fmt: skip


@pytest.mark.parametrize(("source", "family", "task", "culprits"), MISTAKES)
def test_what_cannot_work_is_refused(
    source: str, family: str, task: str, culprits: tuple[str, ...], home: Path
) -> None:
    refused = planned(home, source, family, task)
    assert refused.returncode == 2 and "mine.yaml:" in refused.stderr, refused.stderr
    said = " ".join(refused.stderr.split())  # a long path moves its line breaks
    assert all(culprit in said for culprit in culprits), said


def test_tasks_of_a_family_without_a_model_are_warned_of(tiny_llama: Path, home: Path) -> None:
    text = MANIFEST.format(source=f"path:{tiny_llama}", family="decoder", task="{task: piqa, limit: 4}")
    (home / "mine.yaml").write_text(f"{text}  encoder: [{{task: sciq_retrieval}}]\n")
    shown = call("plan", "mine.yaml", cwd=home)
    assert shown.returncode == 0 and "benchmarks: encoder" in shown.stderr and "sciq_retrieval" in shown.stderr


@pytest.mark.parametrize("lacking", ["", "avx512_vnni"])
def test_an_engine_without_fast_kernels_for_this_cpu_is_named(
    lacking: str, tiny_llama: Path, home: Path, monkeypatch: pytest.MonkeyPatch, every_precision: None
) -> None:
    there = frozenset({"avx2", "avx512_vbmi2", "avx512_vnni"} - {lacking})
    environment.place()  # is kept as long as the process: other tests' machine lacks nothing
    monkeypatch.setattr(processor, "instruction_sets", lambda: there)
    text = MANIFEST.format(source=f"path:{tiny_llama}", family="decoder", task="{task: piqa, limit: 4}")
    (home / "mine.yaml").write_text(f"{text}runtime: [{{engines: [hf, sparse]}}]\n")
    shown = succeed("plan", "mine.yaml", cwd=home)
    assert [line.split()[1] for line in shown.stderr.splitlines() if "avx512_vnni" in line] == ["sparse"] * bool(
        lacking
    )


@pytest.mark.parametrize("words", [("nope",), ("nope", "prune: magnitude, sparsity: 0.5"), ("nope", "--out", "half")])
def test_apply_names_the_missing_model_before_anything_else(words: tuple[str, ...], tmp_path: Path) -> None:
    refused = call("apply", *words, cwd=tmp_path)
    assert refused.returncode == 2 and "nope: no such folder" in refused.stderr
