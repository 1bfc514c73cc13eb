"""What is refused before anything is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebench.manifest.problems import ManifestError
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
