"""docs/howto/own-step.md: the package on the page is installed as it stands, and a manifest can name its step."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.plan.expand import expand
from sparsebench.steps.registry import kinds, label, single
from tests.making import make
from tests.manifest.loading import load_text
from tests.steps.plugin_page import block, install, length

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "own-step.md").read_text(encoding="utf-8")
HEAD = "version: 1\nmodels:\n- {name: m, source: hf:a/m, family: decoder}\n"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package on sys.path."""
    install(PAGE, tmp_path, monkeypatch)
    kinds.cache_clear()
    yield
    kinds.cache_clear()
    sys.modules.pop("sparsebench_halve", None)


def test_the_chain_on_the_page_gets_its_variants(installed: None) -> None:
    assert length(PAGE) <= 40
    manifest = load_text(HEAD + block(PAGE, "yaml"), "page.yaml").manifest
    plan = expand(manifest, "page", {"m": "r"})
    lines = sorted(tuple(label(step) for step in variant.steps) for variant in plan.variants.values())
    assert lines == [
        (), ("depth",), ("depth", "magnitude/layer 50%"), ("depth", "magnitude/layer 90%"), ("depth first=1",),
    ]  # fmt: skip
    ends = [variant for variant in plan.variants.values() if len(variant.steps) == 2]
    (halved,) = {variant.parents[-1] for variant in ends}
    assert plan.variants[halved].steps == (single("halve", "depth"),)
    assert sorted(len(cell.variant.steps) for cell in plan.cells if cell.stage == "make") == [1, 1, 2, 2]


@pytest.mark.parametrize("first", [0, 1])
def test_half_of_the_blocks_is_a_model_that_can_be_pruned(
    installed: None, tiny_llama: Path, tmp_path: Path, first: int
) -> None:
    from transformers import AutoModelForCausalLM

    # Both in one pass.
    steps = [single("halve", "depth", first=number) for number in (0, 1)]
    folder = tmp_path / str(first)
    evidence = make(tiny_llama, "decoder", {step: tmp_path / str(step.settings.first) for step in steps})[steps[first]]
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    before = json.loads((tiny_llama / "config.json").read_text())
    after = json.loads((folder / "config.json").read_text())
    assert len(model.model.layers) == after["num_hidden_layers"] == before["num_hidden_layers"] // 2 > 0
    assert {key for key in before if after.get(key) != before[key]} == {"num_hidden_layers"}
    logits = model(input_ids=torch.arange(1, 9)[None]).logits
    assert bool(logits.isfinite().all())
    name = "model.layers.{}.mlp.up_proj.weight"
    kept, original = Checkpoint(folder).load(name.format(0)), Checkpoint(tiny_llama).load(name.format(first))
    assert torch.equal(kept, original)
    assert evidence.parameters == sum(tensor.numel() for tensor in model.parameters())
    assert evidence.prunable and not evidence.zeros and evidence.seconds > 0
    step = single("prune", "magnitude", sparsity=0.5)
    found = make(folder, "decoder", {step: tmp_path / "pruned"})[step]
    assert found.prunable == evidence.prunable and found.achieved == pytest.approx(0.5, abs=0.01)
