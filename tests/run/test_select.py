"""Why a cell runs: judged by what its id covers, and not by the words in which a person reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebench import records, structure
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.run.select import LEFT_OUT, decisions

MANIFEST = """\
version: 1
models:
  - name: m
    source: random
    family: decoder
    architecture: {{model_type: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 64}}
variants:
  - {{prune: mask, file: mask.bin}}
structure: {{}}
storage: null
runtime: {{engines: [hf], workloads: [{{batch: 1, prompt: 8, generate: 4}}], samples: {samples}, dtype: {dtype}}}
"""


@pytest.fixture
def why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The reasons of a plan's open cells by stage, after which the plan is the last one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask.bin").write_bytes(b"1")

    def planned(samples: int = 20, dtype: str = "float32", more: str = "") -> dict[str, set[str]]:
        (tmp_path / "m.yaml").write_text(MANIFEST.format(samples=samples, dtype=dtype) + more)
        ready = prepare(PlanRequest(tmp_path / "m.yaml"))
        found: dict[str, set[str]] = {}
        for one in decisions(ready, tmp_path / "records", False):
            if not one.cell.variant.is_dense:
                found.setdefault(one.cell.stage, set()).add(one.why)
        records.write_plan(tmp_path / "records", ready.plan.manifest, ready.plan.cells)
        return found

    return planned


@pytest.mark.parametrize(
    ("key", "word", "met"),
    [
        ("keep_zeros", "true", {"wanda"}), ("keep_zeros", "False", {"magnitude"}), ("keep_zeros", "1", set[str]()),
        ("sparsity", "0.50", {"wanda"}), ("sparsity", "half", set[str]()), ("pattern", "1:4", {"magnitude"}),
        ("source", "path:text.txt", {"finetune"}), ("source", "path:other.txt", set[str]()),
    ],
)  # fmt: skip
def test_a_setting_is_meant_as_a_manifest_writes_it(key: str, word: str, met: set[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words\n")
    steps = "{prune: wanda, sparsity: 0.5, keep_zeros: true}", "{prune: magnitude, pattern: '1:4'}"
    entries = [*steps, "{recover: finetune, source: 'path:text.txt'}"]
    text = MANIFEST.format(samples=20, dtype="float32").replace("  - {prune: mask, file: mask.bin}\n", "")
    path = tmp_path / "m.yaml"
    path.write_text(text.replace("variants:\n", "variants:\n" + "".join(f"  - {one}\n" for one in entries)))
    ready = prepare(PlanRequest(path, only=((key, word), ("stage", "structure"))))
    found = decisions(ready, tmp_path / "records", False)
    assert {one.cell.variant.steps[0].name for one in found if one.why != LEFT_OUT} == met


def test_cells_that_lack_a_key_match_none_of_its_values(
    why: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(why)
    why()
    for value, met in (("hf", {"latency", "memory"}), ("None", set[str]())):
        ready = prepare(PlanRequest(tmp_path / "m.yaml", only=(("engine", value),)))
        found = decisions(ready, tmp_path / "records", False)
        assert {one.cell.stage for one in found if one.why != LEFT_OUT} == met


def test_a_second_dtype_or_sample_count_is_new_and_another_version_or_file_is_a_change(
    why: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(why)
    assert why() == {stage: {"new"} for stage in ("make", "structure", "latency", "memory")}
    assert set().union(*why().values()) == {"not reached yet"}
    told = why(samples=30)
    assert told["latency"] == {"new"} and told["memory"] == {"not reached yet"}
    told = why(samples=30, dtype="bfloat16")
    assert told["latency"] == told["memory"] == {"new"} and told["make"] == {"not reached yet"}
    monkeypatch.setattr(structure, "VERSION", structure.VERSION + 1)
    told = why(samples=30, dtype="bfloat16")
    assert told["structure"] == {"changed"} and told["latency"] == {"not reached yet"}
    (tmp_path / "mask.bin").write_bytes(b"2")
    assert set().union(*why(samples=30, dtype="bfloat16").values()) == {"changed"}
