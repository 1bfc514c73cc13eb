"""What a plan refuses of GGUF variants and of the engine llamacpp, before anything is made."""

from pathlib import Path

import pytest

from sparsebench import environment
from tests.plan.planning import refusal, written

MODEL = """
version: 1
models:
  - name: tiny
    source: random
    family: decoder
    architecture:
      {{model_type: {kind}, hidden_size: 64, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 64}}
"""
GGUF = "quantize: gguf, type: Q8_0"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environment.versions(), "xllamacpp", "2026.10.0")


def manifest(rest: str, kind: str = "llama") -> str:
    """A manifest of one model of random weights."""
    return MODEL.format(kind=kind) + rest


@pytest.mark.parametrize(
    "steps, kind, named",
    [
        ([GGUF], "bloom", "bloom"),
        (["shrink: l2, keep: 0.5, uneven: true", GGUF], "llama", "uneven"),
        ([GGUF, "prune: magnitude, sparsity: 0.5"], "llama", "no step may follow"),
        (["quantize: gguf"], "llama", "type"),
        (["shrink: l2, keep: 0.5", "prune: magnitude, sparsity: 0.5", GGUF], "llama", ""),
    ],
)
def test_a_chain_that_no_file_holds_is_refused(steps: list[str], kind: str, named: str, tmp_path: Path) -> None:
    text = manifest(f"variants: [[{', '.join(f'{{{step}}}' for step in steps)}]]\n", kind)
    if named:
        assert named in refusal(tmp_path, text)
    else:
        assert written(tmp_path, text).plan.cells, "it may follow zeros and even shapes"


def test_without_the_package_step_and_engine_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environment.versions(), "xllamacpp", "absent")
    assert "pip install" in refusal(tmp_path, manifest(f"variants: [{{{GGUF}}}]\n"))
    timed = "variants: [{prune: magnitude, sparsity: 0.5}]\nruntime: {engines: llamacpp}\n"
    ready = written(tmp_path, manifest(timed), device="cpu")
    refused = [problem for key, problem in ready.refused.items()]
    assert refused and all("xllamacpp" in problem.message and "pip install" in problem.hint for problem in refused)


def test_what_the_engine_cannot_run_is_refused_by_cell(tmp_path: Path) -> None:
    rest = "variants: [{quantize: int8}, {quantize: gguf, type: Q8_0}]\nruntime: {engines: [hf, llamacpp]}\n"
    ready = written(tmp_path, manifest(rest), device="cpu")
    cells = {cell.id: cell for cell in ready.plan.cells}
    refused = {(cells[key].settings["engine"], cells[key].variant.encoding) for key in ready.refused}
    assert refused == {("llamacpp", "int8"), ("hf", "gguf")}
