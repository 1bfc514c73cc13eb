"""Teachers and students in a manifest: known by their content, refused with their line."""

import json
import shutil
from pathlib import Path

import pytest

from sparsebench.plan.cells import Job
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.expand import Plan
from sparsebench.plan.resources import job_bytes
from tests.plan.planning import refusal, written

HEAD = """version: 1
models:
  - {{name: llama, source: "path:{llama}", family: decoder}}
calibration: {{source: "path:text.txt"}}
structure: null
storage: null
benchmarks: {{decoder: [{{task: perplexity, source: "path:held.txt"}}]}}
variants:
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Path) -> Path:
    """A manifest's folder with a second model beside it."""
    for name in ("text", "held"):
        (tmp_path / f"{name}.txt").write_text(f"words of {name}\n")
    shutil.copytree(tiny_llama, tmp_path / "big")
    (tmp_path / "head").write_text(HEAD.format(llama=tiny_llama))
    return tmp_path


def planned(folder: Path, *entries: str) -> Plan:
    """The plan of a manifest with these variants, the first of which is on line 9."""
    return written(folder, manifest(folder, *entries)).plan


def manifest(folder: Path, *entries: str) -> str:
    return (folder / "head").read_text() + "".join(f"  - {entry}\n" for entry in entries)


def refused(folder: Path, *entries: str) -> str:
    return refusal(folder, manifest(folder, *entries))


def ids(plan: Plan) -> list[str]:
    return list(plan.variants)[1:]


def test_a_teacher_is_known_by_its_content_and_dense_is_the_default(folder: Path) -> None:
    said = ("", ", teacher: dense", ", teacher: ~, source: ~")
    (usual,), (named,), (null,) = (ids(planned(folder, f"{{recover: distill{more}}}")) for more in said)
    assert usual == named == null
    (one,) = ids(planned(folder, '{recover: distill, teacher: [dense, "path:big"]}'))
    (folder / "big").rename(folder / "other")
    (moved,) = ids(planned(folder, '{recover: distill, teacher: [dense, "path:other"]}'))
    assert moved == one != usual
    config = folder / "other" / "config.json"
    config.write_text(config.read_text() + "\n")
    (changed,) = ids(planned(folder, '{recover: distill, teacher: [dense, "path:other"]}'))
    assert changed != one
    swept = ids(planned(folder, '{recover: distill, teacher: [[dense], [dense, "path:other"]]}'))
    assert len(swept) == 2 and changed in swept


def test_a_teacher_can_be_selected(folder: Path) -> None:
    timed = "\nruntime: {engines: hf, select: {teacher: 'path:big'}}"
    plan = planned(folder, "{recover: distill}", "{recover: distill, teacher: 'path:big'}" + timed)
    assert {cell.variant.id for cell in plan.cells if cell.stage == "latency"} == {plan.dense["llama"].id, ids(plan)[1]}


def test_one_of_two_teachers_is_held_at_a_time(folder: Path) -> None:
    plan = planned(folder, "{recover: distill}", '{recover: distill, teacher: [dense, "path:big"], top_k: [64, 0]}')
    size = ModelSize(1000, 4000)
    making = [cell for cell in plan.cells if cell.stage == "make"]
    one, two, live = (job_bytes(Job("", "make", (cell,)), size) for cell in making)
    assert one == two < live


def test_what_cannot_teach_is_refused_with_its_line(folder: Path, tiny_bert: Path) -> None:
    tokenizer = folder / "big" / "tokenizer.json"
    told = json.loads(tokenizer.read_text())
    vocab = told["model"]["vocab"]
    first, second = list(vocab)[5:7]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    tokenizer.write_text(json.dumps(told))
    said = refused(folder, "{recover: distill}", '{recover: distill, teacher: [dense, "path:big"]}')
    assert "path:big: its tokenizer is not that of `llama`" in said and "mine.yaml:10" in said
    config = json.loads((folder / "big" / "config.json").read_text())
    (folder / "big" / "config.json").write_text(json.dumps({**config, "vocab_size": 500}))
    assert "its vocabulary has 500 tokens" in refused(folder, '{recover: distill, teacher: "path:big"}')
    shutil.copytree(tiny_bert, folder / "bert")
    assert "of another family" in refused(folder, '{recover: distill, teacher: "path:bert"}')
    assert "mine.yaml:9" in refused(folder, '{recover: distill, teacher: "path:absent"}')
    assert "nothing to read or learn from" in refused(folder, "{recover: distill, teacher: random}")
    assert "beside several teachers" in refused(folder, '{recover: distill, teacher: [dense, "path:big"], match: cos}')


def test_encoders_are_distilled_by_the_states_of_one(folder: Path, tiny_bert: Path) -> None:
    head = HEAD.replace("decoder", "encoder").replace("perplexity", "pseudo_perplexity").format(llama=tiny_bert)
    (folder / "head").write_text(head)
    both = f"teacher: [dense, 'path:{tiny_bert}']"
    for step in ("recover: distill", "prune: gradual, sparsity: 0.5", "shrink: gates, keep: 0.5"):
        said = refused(folder, f"{{{step}, {both}}}")
        assert "llama: an encoder can have only one teacher" in said and "mine.yaml:9" in said
        assert "a loss on predictions" in refused(folder, f"{{{step}, alpha: 0.5}}")


def test_students_that_the_model_has_too_few_blocks_for(folder: Path) -> None:
    said = refused(folder, "{prune: magnitude, sparsity: 0.5}", "{recover: distill, student: {layers: [0, 7]}}")
    assert "block 7, where a stack of `llama` has 2" in said and "mine.yaml:10" in said
    assert "5 blocks" in refused(folder, "{recover: distill, student: {layers: 5, hidden: 16}}")
    said = refused(folder, "[{prune: magnitude, sparsity: 0.5}, {recover: distill, student: {layers: 5}}]")
    assert "5 blocks, where a stack of `llama` has 2" in said and "variants[0][1].student" in said
    assert "mean `layers`" in refused(folder, "{recover: distill, student: {layer: 1}}")
    assert "`hidden`" in refused(folder, "{recover: distill, student: {hidden: wide}}")
    assert "such as `layers: 6`" in refused(folder, "{recover: distill, student: {}}")
    swept = ids(planned(folder, "{recover: distill, student: [{layers: 1}, {hidden: 16}, {hidden: 32}]}"))
    assert len({*swept}) == 3
