"""Blocks trained after a cut: nearer to the dense model, with every zero where it was, and a file that transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.blockwise import Block
from sparsebench.models.shape.topology import parts
from sparsebench.steps.registry import label, single
from tests.models.replaying import written
from tests.steps.recover.making import calibration_text, made, pruned, zeros_stay


def outputs(folder: Path, family: Any, depth: int = -1, rows: slice = slice(32, 40)) -> torch.Tensor:
    """Hidden states at a depth, (tokens, width), by stock transformers; of samples not trained on, if none are said."""
    given = calibration_text(family, 40).batch
    model = load_model(folder, family)
    kwargs = {name: tensor[rows] for name, tensor in vars(given).items() if tensor is not None}
    with torch.no_grad():
        found = model(**kwargs, output_hidden_states=True)
    states = found.decoder_hidden_states if family == "encoder-decoder" else found.hidden_states
    mask = given.attention_mask if given.decoder_attention_mask is None else given.decoder_attention_mask
    kept: torch.Tensor = states[depth].float()[mask[rows].bool()]
    return kept


RECONSTRUCT = single("recover", "reconstruct", epochs=4, rate=3e-3)


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "gpt2", "mixtral"])
def test_outputs_come_nearer_to_the_dense_models_and_zeros_stay(kind: str, tmp_path: Path) -> None:
    dense, parent, family = pruned(kind, tmp_path)
    found = made(parent, family, tmp_path / "out", RECONSTRUCT, dense)
    wanted, before, after = (outputs(folder, family) for folder in (dense, parent, tmp_path / "out"))
    assert (after - wanted).square().sum() < 0.9 * (before - wanted).square().sum()
    zeros_stay(parent, tmp_path / "out", family, found)
    old = Checkpoint(parent)
    assert found.trained_tokens > 0 and "in the first block" in found.note
    assert f"of the published run's {128 * 512:,}" in found.note
    notes = json.loads((tmp_path / "out" / "sparsebench.json").read_text())
    if family != "encoder-decoder":  # of which each side has tokens of its own
        wanted, total = 0, calibration_text(family).tokens
        for one in notes["fits"]:
            inside = [name for name, part in parts(old, family).items() if part.block == one["block"]]
            size, unseen = sum(old.tensors[name].numel for name in inside), total - one["tokens"]
            wanted += size * (6 * one["tokens"] * one["epochs"] + 2 * unseen * (one["epochs"] + 1) + 4 * total)
        assert found.operations == wanted > 0
    assert notes["recover"] == "reconstruct" and notes["epochs"] == 4
    assert all(one["after"] < one["before"] for one in notes["fits"])


def test_no_more_tokens_are_read_than_asked_for(tmp_path: Path) -> None:
    dense, parent, family = pruned("llama", tmp_path)
    step = single("recover", "reconstruct", epochs=1, tokens=200)
    assert "tokens=200" in label(step) and "tokens" not in RECONSTRUCT.settings
    found = made(parent, family, tmp_path / "out", step, dense)
    told = json.loads((tmp_path / "out" / "sparsebench.json").read_text())
    counts = calibration_text(family).batch.attention_mask.sum(1).cumsum(0)
    assert found.calibration_tokens == told["calibration_tokens"] == max(one for one in counts.tolist() if one <= 200)
    assert all(one["tokens"] <= 200 for one in told["fits"])
    with pytest.raises(ModelError, match="none is left to train on"):
        made(parent, family, tmp_path / "few", single("recover", "reconstruct", tokens=20), dense)


def test_a_rate_that_ruins_makes_nothing_worse(tmp_path: Path) -> None:
    dense, parent, family = pruned("llama", tmp_path)
    step = single("recover", "reconstruct", epochs=4, rate=0.9)
    made(parent, family, tmp_path / "out", step, dense)
    wanted, before, after = (outputs(folder, family) for folder in (dense, parent, tmp_path / "out"))
    assert (after - wanted).square().sum() <= 1.01 * (before - wanted).square().sum()


def test_smaller_blocks_are_trained_too(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    cut = single("shrink", "l2", keep=0.5, of="neurons", compensation="none")
    made(dense, family, tmp_path / "cut", cut, dense)
    made(tmp_path / "cut", family, tmp_path / "out", RECONSTRUCT, dense)
    wanted, before, after = (outputs(tmp_path / name, family) for name in ("dense", "cut", "out"))
    assert (after - wanted).square().sum() < 0.95 * (before - wanted).square().sum()


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_grouped_neurons_are_trained_behind_their_router(kind: str, tmp_path: Path) -> None:
    dense, family = written(kind, tmp_path / "dense")
    groups = single("moefy", "kmeans", experts=8, active=0.5, router="centroid")
    grouped = made(dense, family, tmp_path / "grouped", groups, dense)
    step = single("recover", "reconstruct", rate=0.003, batch=2, epochs=2)
    found = made(tmp_path / "grouped", family, tmp_path / "out", step, dense)
    assert found.read_share == grouped.read_share < 1
    read = slice(0, 24)
    target = outputs(dense, family, rows=read)
    before, after = (
        float((outputs(tmp_path / name, family, rows=read) - target).norm()) for name in ("grouped", "out")
    )
    assert after < before
    old, new = Checkpoint(tmp_path / "grouped"), Checkpoint(tmp_path / "out")
    assert old.config == new.config and list(old.tensors) == list(new.tensors)
    fixed = [name for name in old.tensors if ".moe." in name]
    assert fixed and all(torch.equal(old.load(name), new.load(name)) for name in fixed)
    told = json.loads((tmp_path / "out" / "sparsebench.json").read_text())
    assert told["recover"] == "reconstruct" and any(fit["after"] < fit["before"] for fit in told["fits"])


def test_what_leaves_weights_out_is_recovered_by_blocks_and_without_an_oracle_alone(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    blocks, whole = single("recover", "reconstruct"), single("recover", "distill", tokens=100)
    for name, groups, step, words in (
        ("a", single("moefy", "kmeans", experts=8, active=0.5, router="oracle"), blocks, "its oracle router"),
        ("b", single("moefy", "kmeans", experts=8, active=0.5), whole, "leaves weights out already"),
        ("c", single("skip", "teal", share=0.5), blocks, "leaves weights out already"),
    ):
        made(dense, family, tmp_path / name, groups, dense)
        with pytest.raises(SparsebenchError, match=words):
            made(tmp_path / name, family, tmp_path / "out", step, dense)


def test_what_cannot_be_recovered_is_refused(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    made(dense, family, tmp_path / "int8", single("quantize", "int8"), dense)
    with pytest.raises(ModelError, match="its weights are quantized"):
        made(tmp_path / "int8", family, tmp_path / "out", RECONSTRUCT, dense)
    made(dense, family, tmp_path / "half", single("shrink", "last", blocks=1), dense)
    with pytest.raises(UnsupportedError, match="has 1 blocks and the dense model 2"):
        made(tmp_path / "half", family, tmp_path / "out", RECONSTRUCT, dense)
    with pytest.raises(ModelError, match="none is left to train on"):
        made(dense, family, tmp_path / "out", RECONSTRUCT, dense, samples=3)
    assert not (tmp_path / "out").exists()


def test_the_error_that_is_told_is_that_of_the_blocks_outputs(tmp_path: Path) -> None:
    """The first block's error, by the stock model; progress tells it too, with the time left."""
    dense, parent, family = pruned("llama", tmp_path)
    said: list[tuple[int, int, str]] = []
    made(
        parent, family, tmp_path / "out", RECONSTRUCT, dense,
        progress=lambda done, total, words="": said.append((done, total, words)),
    )  # fmt: skip
    fits = json.loads((tmp_path / "out" / "sparsebench.json").read_text())["fits"]
    one, *others = (outputs(tmp_path / name, family, 1, slice(20, 24)) for name in ("dense", "pruned", "out"))
    errors = [float(((other - one).square().sum(-1) / one.square().sum(-1)).mean()) for other in others]
    assert errors == pytest.approx([fits[0]["before"], fits[0]["after"]], rel=1e-3)
    assert [one[:2] for one in said] == [(1, 2), (2, 2)]
    for (_, _, words), fit in zip(said, fits, strict=True):
        assert words.startswith(f"error {fit['before']:.3g} → {fit['after']:.3g}, ") and words.endswith("s left")


def test_weights_that_come_back_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, parent, family = pruned("llama", tmp_path)
    replace = Block.replace
    monkeypatch.setattr(
        Block, "replace", lambda block, weights: replace(block, {name: one + 1e-3 for name, one in weights.items()})
    )
    with pytest.raises(ModelError, match="came back"):
        made(parent, family, tmp_path / "out", RECONSTRUCT, dense)
    assert not (tmp_path / "out").exists()
