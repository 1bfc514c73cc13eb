"""docs/methods.md: the package on the page is installed as it stands, found, swept, counted, and does what it says."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.replay.gather import InputStatistics
from sparsebench.models.shape.topology import parts
from sparsebench.plan.expand import recipes
from sparsebench.steps.prune import registry
from sparsebench.steps.prune.contract import Layer, Quota
from sparsebench.steps.prune.methods.scores import wanda_scores
from tests.making import prune_step
from tests.manifest.loading import load_text
from tests.steps.plugin_page import block, install, length
from tests.steps.prune.test_blockwise import swept

PAGE = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Your own method in 40 lines")[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package on sys.path."""
    install(SECTION, tmp_path, monkeypatch)
    registry.methods.cache_clear()
    yield
    registry.methods.cache_clear()


def test_the_method_joins_the_table_without_torch_and_the_manifest_on_the_page_is_valid(installed: None) -> None:
    assert length(SECTION) <= 40
    assert list(registry.methods())[-1] == "rescaled"
    assert registry.methods()["rescaled"].load_solve().__name__ == "solve"
    assert not re.search(r"^import torch", block(SECTION, "python"), re.MULTILINE)
    head = "version: 1\nmodels:\n- {name: m, source: hf:a/m, family: decoder}\n"
    manifest = load_text(head + block(SECTION, "yaml"), "page.yaml").manifest
    found = [step for entry in manifest.variants for (step,) in recipes(entry)]
    assert len(found) == 6
    assert found[0] == prune_step("rescaled", 0.5, "row", propagate="dense")
    assert {step.settings.pattern for step in found} == {"unstructured", "2:4", "4x4"}


def test_a_sweep_with_it_keeps_its_counts(installed: None, tiny_llama: Path, tmp_path: Path) -> None:
    wanted = [
        prune_step("rescaled", 0.5, "row"), prune_step("rescaled", 0.9, "layer"), prune_step("rescaled", 0.5, "row", "2:4"),
        prune_step("rescaled", 0.5, "layer", "4x4"), prune_step("rescaled", 0.5, "row", allocation="owl"),
        prune_step("wanda", 0.5, "row"),
    ]  # fmt: skip
    results = swept(tiny_llama, "decoder", tmp_path, wanted, "dense")
    names = [name for name, part in parts(Checkpoint(tiny_llama), "decoder").items() if part.prunable]
    versions = [Checkpoint(tmp_path / str(place)) for place in range(len(wanted))]
    for name in names:
        zeros = [version.load(name) == 0 for version in versions]
        rows, columns = zeros[0].shape
        assert set(zeros[0].sum(1).tolist()) == {round(0.5 * columns)}
        assert int(zeros[1].sum()) == round(0.9 * rows * columns)
        assert set(zeros[2].reshape(rows, -1, 4).sum(2).flatten().tolist()) == {2}
        blocks = zeros[3].reshape(rows // 4, 4, columns // 4, 4).transpose(1, 2).reshape(-1, 16).sum(1)
        assert set(blocks.tolist()) == {0, 16}
        assert torch.equal(zeros[0], zeros[5]), "the page says that Wanda's mask is kept"
        assert not torch.equal(versions[0].load(name), versions[5].load(name))
    assert results[wanted[4]].achieved == pytest.approx(0.5, abs=0.01)
    assert not any(result.note for result in results.values())


def test_rescaling_brings_outputs_nearer(installed: None) -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(200, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    inputs = InputStatistics(200, text.square().sum(0), text.T @ text)
    layer = Layer("w", torch.randn(16, 24, generator=generator), inputs=inputs)
    ((found,),) = registry.methods()["rescaled"].load_solve()([layer], [Quota(0.5, "row")])
    kept = wanda_scores(layer).argsort(1)[:, 12:]
    wanda = torch.zeros_like(layer.weights).scatter(1, kept, layer.weights.gather(1, kept))

    def error(weights: torch.Tensor) -> torch.Tensor:
        return ((weights - layer.weights) @ text.T).square().sum(1)

    assert torch.equal(found.weights == 0, wanda == 0)
    assert (error(found.weights) <= error(wanda) * (1 + 1e-5)).all()
    assert error(found.weights).sum() < 0.99 * error(wanda).sum()
