"""Thresholds of skipping: none at share 0, the share that was asked for on the text, and refusals by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.modules.skipping import KEY, thresholds_of
from sparsebench.models.shape.topology import module_path
from sparsebench.steps.registry import single
from sparsebench.steps.skip.magnitudes import Magnitudes
from tests.benchmarks.masked_models import save
from tests.models.replaying import written
from tests.models.test_experts import stored
from tests.runtime.engines.pruned import prune
from tests.steps.shrink.making import text
from tests.steps.skip.making import made, said


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama", "teal"), ("t5", "teal"), ("bert", "teal"), ("bert", "cats"), ("t5:gated", "cats"), ("gpt2", "cats")],
)
def test_a_share_of_0_is_the_model_and_more_is_further_off(kind: str, name: str, tmp_path: Path) -> None:
    parent, family = written(kind, tmp_path / "parent")
    steps = {single("skip", name, share=share): tmp_path / str(share) for share in (0.0, 0.3, 0.8)}
    found = made(parent, family, steps)
    dense = said(parent, family)
    errors = [float((said(folder, family) - dense).norm() / dense.norm()) for folder in steps.values()]
    assert errors[0] <= 1e-6 < errors[1] < errors[2]
    for one, folder in zip(found.values(), steps.values(), strict=True):
        assert one.parameters == sum(info.numel for info in Checkpoint(parent).tensors.values())
        assert "weights are read for a token" in one.note
        assert f"{one.read_share:.1%} of the blocks' weights" in one.note
        for info, tensor in Checkpoint(parent).items():
            assert torch.equal(tensor, Checkpoint(folder).load(info.name))
    shares = [one.read_share for one in found.values()]
    assert 1 >= shares[0] > shares[1] > shares[2] > 0.1


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_thresholds_cut_the_share_of_what_layers_read(kind: str, tmp_path: Path) -> None:
    parent, family = written(kind, tmp_path / "parent")
    (found,) = made(parent, family, {single("skip", "teal", share=0.4): tmp_path / "out"}).values()
    skip = thresholds_of(Checkpoint(tmp_path / "out").config)
    assert skip and not skip.outputs
    assert {row.module: row.threshold for row in found.activity} == skip.inputs
    assert {(row.side, row.layer) for row in found.activity} == {(row.side, row.layer) for row in found.tensors}
    # What T5's ReLU gives is zero for about half of the neurons by itself.
    behind = [row for row in found.activity if row.module.endswith(".wo")]
    assert all(row.near_zero > 0.3 and (row.skipped or 0) >= 0.39 for row in behind) and (kind != "t5" or behind)
    usual = [row for row in found.activity if row not in behind]
    assert all(0 <= row.near_zero < 0.2 and row.skipped == pytest.approx(0.4, abs=0.02) for row in usual)
    model: Any = load_model(parent, family)
    given = text(family, 8).batch
    shares: dict[str, float] = {}
    for path, limit in skip.inputs.items():
        name = module_path(model, path)
        assert name
        cross = "EncDecAttention.k" in name or "EncDecAttention.v" in name
        decoder = name.startswith("decoder.") and not cross and given.decoder_attention_mask is not None
        mask = given.decoder_attention_mask if decoder else given.attention_mask

        def look(_: Any, args: Any, path: str = path, limit: float = limit, mask: Any = mask) -> None:
            shares[path] = float((args[0][mask].abs() <= limit).float().mean())

        model.get_submodule(name).register_forward_pre_hook(look)
    with torch.no_grad():
        model(**{name: tensor for name, tensor in vars(given).items() if tensor is not None})
    assert len(shares) == len(skip.inputs) >= 12
    # A ReLU's zeros are more than was asked for.
    assert all(abs(share - 0.4) < 0.01 or (share > 0.4 and path.endswith(".wo")) for path, share in shares.items())


def test_zeros_and_skipping_are_counted_together(tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    prune(parent, tmp_path / "pruned", 0.5)
    (found,) = made(tmp_path / "pruned", family, {single("skip", "teal", share=0.4): tmp_path / "out"}).values()
    told = json.loads((tmp_path / "out" / "sparsebench.json").read_text())
    kept = {one.name.removesuffix(".weight"): 1 - one.zeros / one.count for one in found.tensors}
    size = {one.name.removesuffix(".weight"): one.count for one in found.tensors}
    skipped = {next(name for name in size if name.endswith(row.module)): row.skipped or 0 for row in found.activity}
    wanted = sum(size[name] * kept[name] * (1 - share) for name, share in skipped.items()) / found.prunable
    assert told["multiplied"] == pytest.approx(wanted) and wanted < 0.6 * found.read_share
    assert f"{wanted:.1%} of them are read" in found.note
    assert f"{wanted + found.read_share / 16:.1%} of the bytes" in found.note


def test_magnitudes_know_their_quantiles() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    for given in (values, values.bfloat16()):
        counted = Magnitudes()
        counted.add(given[:5000])
        counted.add(given[5000:].reshape(5, -1))
        for share in (0.1, 0.5, 0.9):
            limit, reached = counted.threshold(share)
            assert reached == pytest.approx(float((given.float().abs() <= limit).float().mean()), abs=1e-6)
            assert abs(reached - share) < 0.005 and limit == float(torch.tensor(limit).bfloat16())
        assert counted.threshold(0.0) == (0.0, 0.0)
        assert counted.near_zero == pytest.approx(0.008, abs=0.002)  # P(|x| ≤ 0.01) of a normal x
    half = Magnitudes()
    half.add(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert half.threshold(0.5) == (0.0, 0.75)


def test_a_head_that_holds_the_encoder_is_masked_too(tmp_path: Path) -> None:
    parent, family = save(tmp_path / "parent", "bert"), "encoder"
    made(parent, family, {single("skip", "teal", share=0.4): tmp_path / "out"})
    ids = text("encoder", 2).batch.input_ids
    with torch.no_grad():
        model = load_model(tmp_path / "out", "encoder", kind=AutoModelForMaskedLM)
        masked = model.base_model(ids).last_hidden_state
        plain = load_model(parent, "encoder", kind=AutoModelForMaskedLM).base_model(ids).last_hidden_state
    assert (masked - plain).norm() > 0.01 * plain.norm()


def test_a_quantized_model_is_skipped_as_the_floats_that_it_stands_for(tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    int8, out = single("quantize", "int8"), single("skip", "teal", share=0.4)
    made(parent, family, {int8: tmp_path / "int8"})
    made(tmp_path / "int8", family, {out: tmp_path / "out"})
    plain, masked = said(tmp_path / "int8", family), said(tmp_path / "out", family)
    assert (masked - plain).norm() > 0.01 * plain.norm()
    assert Checkpoint(tmp_path / "out").stored.keys() == Checkpoint(tmp_path / "int8").stored.keys()


def test_refusals_name_the_culprit(tmp_path: Path) -> None:
    step, out = single("skip", "teal", share=0.4), tmp_path / "out"
    with pytest.raises(UnsupportedError, match=r"mixture of experts .*block_sparse_moe"):
        made(stored("mixtral", "published", tmp_path / "moe"), "decoder", {step: out})
    parent, family = written("llama", tmp_path / "parent")
    made(parent, family, {step: out})
    with pytest.raises(ModelError, match="skips weights already"):
        made(out, family, {step: tmp_path / "twice"})
    for damaged in ([], {"inputs": {"a": -1.0}, "outputs": {}}, {"inputs": {"a": True}, "outputs": {}}):
        with pytest.raises(ModelError, match=KEY):
            thresholds_of({KEY: damaged})


@pytest.mark.parametrize(("kind", "shares"), [("llama", (0.3, 0.6)), ("bert", (0.3,)), ("t5", (0.3,))])
def test_a_greedy_allocation_skips_as_much_and_costs_less(kind: str, shares: tuple[float, ...], tmp_path: Path) -> None:
    """Of a small random T5 nothing is left at 0.6, however it is shared out."""
    parent, family = written(kind, tmp_path / "parent")
    dense, errors = said(parent, family), {}
    for how in ("uniform", "greedy"):
        steps = {single("skip", "teal", share=share, allocation=how): tmp_path / f"{how}{share}" for share in shares}
        made(parent, family, steps)
        for share, folder in zip(shares, steps.values(), strict=True):
            errors[how, share] = float((said(folder, family) - dense).norm() / dense.norm())
            told = json.loads((folder / "sparsebench.json").read_text())
            # The zeros that a ReLU gives are skipped whatever was asked for.
            assert 1 - share - 0.1 < told["read"] < 1 - share + 0.04
            assert how == "uniform" or len({round(layer["share"], 1) for layer in told["layers"].values()}) > 2
    assert all(errors["greedy", share] < errors["uniform", share] for share in shares)
