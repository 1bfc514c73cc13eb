"""What is refused before anything is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebench.manifest.problems import ManifestError
from sparsebench.plan.expand import Plan
from sparsebench.plan.preflight import Request, prepare

MANIFEST = """
version: 1
models:
  - name: shared
    source: random
    family: encoder
    architecture: {{model_type: albert, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 64}}
  - name: plain
    source: random
    family: encoder
    architecture: {{model_type: bert, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 64}}
calibration: {{source: "path:text.txt"}}
variants:
  - {{prune: {method}, sparsity: 0.5{more}}}
"""


@pytest.mark.parametrize(
    ("method", "more", "refused"),
    [("wanda", "", True), ("wanda", ", models: plain", False), ("magnitude", "", False)],
)
def test_an_architecture_that_cannot_be_calibrated_is_refused_with_its_line(
    tmp_path: Path, method: str, more: str, refused: bool
) -> None:
    (tmp_path / "text.txt").write_text("some words\n")
    path = tmp_path / "mine.yaml"
    path.write_text(MANIFEST.format(method=method, more=more))
    if not refused:
        assert prepare(Request(path)).plan.cells
        return
    with pytest.raises(ManifestError) as caught:
        prepare(Request(path))
    said = str(caught.value)
    assert "shared: albert cannot be calibrated block by block" in said and "mine.yaml:14" in said
    assert "plain:" not in said


MASKED = """
version: 1
models:
  - name: plain
    source: random
    family: encoder
    architecture: {{model_type: bert, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 64}}
variants:
  - {{prune: mask, file: [{one}, {other}]}}
  - - {{prune: magnitude, sparsity: 0.5}}
    - {{prune: mask, file: {one}}}
runtime: {{select: {{file: {other}}}}}
"""


def masked(folder: Path, one: str, other: str, contents: tuple[bytes, bytes]) -> Plan:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    for name, content in zip((one, other), contents, strict=True):
        (folder / name).write_bytes(content)
    (folder / "m.yaml").write_text(MASKED.format(one=one, other=other))
    return prepare(Request(folder / "m.yaml")).plan


def test_a_variant_is_known_by_the_content_of_the_file_that_its_step_names(tmp_path: Path) -> None:
    """Under whatever name and in whatever folder, from wherever the program runs."""
    first = masked(tmp_path / "a", "one", "deep/other", (b"1", b"2"))
    ids = [*first.variants]
    assert len(set(ids)) == 5  # dense, two masks, magnitude, and a mask behind it
    assert [*masked(tmp_path / "b", "deep/uno", "two", (b"1", b"2")).variants] == ids
    changed = masked(tmp_path / "b", "deep/uno", "two", (b"1", b"3"))
    assert [place for place, name in enumerate(changed.variants) if name not in ids] == [2]
    labels = [variant.recipe for variant in first.variants.values()]
    assert labels == ["dense", "mask one", "mask other", "magnitude/layer 50%", "magnitude/layer 50%, then mask one"]
    assert [variant.record()["sparsity"] for variant in first.variants.values()] == [0, None, None, 0.5, None]
    timed = {cell.variant.recipe for cell in first.cells if cell.stage == "latency"}
    assert timed == {"dense", "mask other"}
