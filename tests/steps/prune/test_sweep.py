"""The sweep on whole checkpoints: every family loads again, counts are exact, what is out of scope stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.manifest.schema import Family
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.topology import parts
from sparsebench.steps.contract import Evidence
from sparsebench.steps.evidence import counted
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.sweep import Sweep

FAMILIES = [("tiny_llama", "decoder"), ("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")]
SPARSITIES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


def swept(dense: Path, family: Family, out: Path, targets: list[Target]) -> dict[Target, Evidence]:
    results: dict[Target, Evidence] = {}
    folders = {target: out / f"{place}" for place, target in enumerate(targets)}
    Sweep(dense, family, folders, seed=7).run(results.__setitem__)
    return results


@pytest.mark.parametrize("granularity", ["global", "layer", "row"])
@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize(("model", "family"), FAMILIES)
def test_counts_are_exact_and_the_rest_is_untouched(
    model: str, family: Family, method: str, granularity: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dense = request.getfixturevalue(model)
    targets = [Target(method, sparsity, granularity) for sparsity in SPARSITIES]
    results = swept(dense, family, tmp_path, targets)
    before, places = Checkpoint(dense), parts(Checkpoint(dense), family)
    for place, target in enumerate(targets):
        after = Checkpoint(tmp_path / str(place))
        assert after.tensors.keys() == before.tensors.keys()
        for name, tensor in after.items():
            old = before.load(name.name)
            if places[name.name].prunable:
                kept = tensor != 0
                assert torch.equal(tensor[kept], old[kept])
                if granularity == "layer":
                    assert int((~kept).sum()) == round(target.sparsity * old.numel()) + int((old[kept] == 0).sum())
            else:
                assert torch.equal(tensor, old), name
        result = results[target]
        if granularity == "global":
            assert result.zeros == round(target.sparsity * result.prunable)
        assert result.zeros == sum(tensor.zeros for tensor in result.tensors)
        assert result.prunable == sum(tensor.count for tensor in result.tensors)


def test_versions_of_a_sweep_are_nested(tiny_llama: Path, tmp_path: Path) -> None:
    targets = [Target("random", sparsity, "layer") for sparsity in (0.1, 0.5, 0.9)]
    swept(tiny_llama, "decoder", tmp_path, targets)
    name = "model.layers.0.mlp.up_proj.weight"
    low, mid, high = (Checkpoint(tmp_path / str(place)).load(name) == 0 for place in range(3))
    assert bool((low <= mid).all())
    assert bool((mid <= high).all())


def test_gpt2_rows_are_outputs(tmp_path: Path) -> None:
    """Conv1D stores (in, out): a row-wise mask must count along the stored columns."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)).save_pretrained(tmp_path / "gpt2")
    swept(tmp_path / "gpt2", "decoder", tmp_path / "out", [Target("magnitude", 0.5, "row")])
    weight = Checkpoint(tmp_path / "out" / "0").load("transformer.h.0.mlp.c_fc.weight")
    assert weight.shape == (32, 128)
    assert set((weight == 0).sum(dim=0).tolist()) == {16}
    assert len(set((weight == 0).sum(dim=1).tolist())) > 1


def test_stock_transformers_loads_what_was_written(tiny_t5: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    swept(tiny_t5, "encoder-decoder", tmp_path, [Target("magnitude", 0.5, "layer")])
    model, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "0", output_loading_info=True)
    assert not info["missing_keys"]
    weight = model.encoder.block[0].layer[0].SelfAttention.q.weight
    assert int((weight == 0).sum()) == weight.numel() // 2


def test_no_folder_is_left_when_a_sweep_fails(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="global"):
        swept(tiny_llama, "decoder", tmp_path / "out", [Target("magnitude", 0.5, "global", "2:4")])
    assert not (tmp_path / "out").exists()


def test_verify_counts_the_dense_model(tiny_bert: Path) -> None:
    result = counted(tiny_bert, "encoder")
    model_size = sum(info.numel for info in Checkpoint(tiny_bert).tensors.values())
    assert result.parameters == model_size
    assert result.prunable == 2 * (4 * 64 * 64 + 2 * 64 * 128)


def test_a_version_that_lost_its_zeros_on_the_way_leaves_no_folder(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has its name already would pass for whole in the next run."""
    from sparsebench.steps import evidence

    monkeypatch.setattr(evidence, "zeros_in", lambda piece: 0)
    with pytest.raises(ModelError, match="0 zeros on disk where"):
        swept(tiny_llama, "decoder", tmp_path, [Target("magnitude", share, "layer") for share in (0.5, 0.9)])
    assert list(tmp_path.iterdir()) == []


def test_a_global_sweep_reads_no_tensor_for_thresholds_of_its_own(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsebench.steps.prune import tensorwise

    asked: list[int] = []
    found = tensorwise.thresholds
    monkeypatch.setattr(
        tensorwise, "thresholds", lambda passes, ranks: asked.append(len(ranks)) or found(passes, ranks)
    )
    swept(tiny_llama, "decoder", tmp_path, [Target("magnitude", share, "global") for share in (0.5, 0.9)])
    assert asked == [2]
