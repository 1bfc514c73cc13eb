"""Hidden channels that go: which ones, how many, and what makes up for norms that divide by another width."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_core import PydanticCustomError

from sparsebench.errors import UnsupportedError
from sparsebench.models import residual, spill
from sparsebench.models.axes import shape
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.load import load_masked_lm, load_model
from sparsebench.models.operations import operations_a_token
from sparsebench.models.replay import Replay
from sparsebench.steps.contract import Context, Evidence
from sparsebench.steps.registry import kinds, label, single
from sparsebench.steps.shrink import channels, rescaling, width
from sparsebench.steps.shrink.whole import WholeModel
from tests.models.replaying import Stock, written
from tests.models.test_axes import random_everywhere
from tests.steps.shrink.making import shrunk, text

WIDE = {"hidden_size": 64, "intermediate_size": 80}
TABLE = "model.embed_tokens.weight"


def stayed(before: Path, after: Path, table: str = TABLE) -> list[int]:
    """Which channels are left, by the columns of the tokens' table."""
    old, new = (Checkpoint(folder).load(table).T for folder in (before, after))
    return [number for number, column in enumerate(old) if any(torch.equal(column, one) for one in new)]


def best(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(descending=True)[:count].tolist())


def slow_norms(folder: Path, family: Any, power: int) -> torch.Tensor:
    """Σ|w|^p over every tensor with two dimensions, by the position of the hidden size in its shape."""
    found = torch.zeros(64, dtype=torch.float64)
    for _, tensor in Checkpoint(folder).items():
        for dim in (dim for dim in range(tensor.ndim) if tensor.ndim == 2 and tensor.shape[dim] == 64):
            found += tensor.double().abs().pow(power).sum(1 - dim)
    return found


def slow_activation(folder: Path, family: Any) -> torch.Tensor:
    """What the first of the matrices that read the same reads, by plain hooks in stock transformers."""
    given = text(family).batch
    stock = Stock(folder, family, given)
    first = [name for name in stock.read if name.endswith(("q_proj.weight", "gate_proj.weight"))]
    return sum(stock.rows(name, given).double().square().mean(0).sqrt() for name in first)  # type: ignore[return-value]


def slow_taylor(folder: Path, family: Any) -> torch.Tensor:
    """By the gradients of the weights themselves."""
    model = load_model(folder, family)
    batch = text(family).batch
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    wanted = batch.input_ids[:, 1:].masked_fill(~batch.attention_mask[:, 1:], -100)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten()).backward()
    found, written = torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    for name, weight in model.named_parameters():
        product = (weight * weight.grad).double().detach()
        if ".layers." in name and name.endswith(("o_proj.weight", "down_proj.weight")):
            written += product.sum(1)
        elif ".layers." in name and product.ndim == 2:
            found += product.sum(0).abs()
    return found + written.abs()


@pytest.mark.parametrize("name", ["l1", "l2", "activation", "taylor"])
def test_the_channels_that_stay_are_those_of_a_slow_reference(name: str, tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model", **WIDE)
    random_everywhere(folder)
    given = {"labels": "text"} if name == "taylor" else {}
    out, result = shrunk(folder, family, tmp_path / "out", name, keep=0.5, of="hidden", **given)
    assert isinstance(result, Evidence) and "32 of 64 hidden channels" in result.note, result
    slow = {
        "l1": lambda: slow_norms(folder, family, 1), "l2": lambda: slow_norms(folder, family, 2),
        "activation": lambda: slow_activation(folder, family), "taylor": lambda: slow_taylor(folder, family),
    }[name]()  # fmt: skip
    assert stayed(folder, out) == best(slow, 32)
    model = load_model(out, family)
    assert (model.config.hidden_size, model.config.head_dim, model.config.num_attention_heads) == (32, 8, 4)


@pytest.mark.parametrize(("kind", "changes"), [("qwen3", WIDE), ("t5", {"d_model": 64})])
def test_shares_and_multiples_are_met(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model", **changes)
    before = shape(Checkpoint(folder), family).block_parameters
    out, result = shrunk(folder, family, tmp_path / "parameters", "l2", parameters=0.6, of="hidden")
    assert isinstance(result, Evidence), result
    left = shape(Checkpoint(out), family).block_parameters / before
    assert left == pytest.approx(0.6, abs=0.01) and f"{1 - left:.1%}" in result.note
    assert result.parameters == sum(one.numel() for one in load_model(out, family).parameters())
    out, result = shrunk(folder, family, tmp_path / "operations", "l2", operations=0.9, of="hidden")
    counts = [operations_a_token(Checkpoint(one).config, family) for one in (folder, out)]
    widths = [Checkpoint(one).config.get("hidden_size", Checkpoint(one).config.get("d_model")) for one in (folder, out)]
    assert counts[0] and counts[1]
    old, new = (count - 2 * 96 * width for count, width in zip(counts, widths, strict=True) if count)
    assert new / old == pytest.approx(0.9, abs=0.01)
    many, _ = shrunk(folder, family, tmp_path / "many", "l1", keep=0.3, of="hidden", multiple_of=12)
    assert 24 in Checkpoint(many).config.values()
    _, wrong = shrunk(folder, family, tmp_path / "wrong", "l1", operations=0.01, of="hidden")
    assert isinstance(wrong, UnsupportedError) and "of the blocks' operations" in wrong.message


@pytest.mark.parametrize("of", ["hidden", "neurons"])
def test_hidden_states_that_are_too_large_for_memory_are_files(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path | None] = []
    plain = spill.States._buffer
    monkeypatch.setattr(spill.States, "_buffer", lambda self, like: folders.append(self.folder) or plain(self, like))
    for module in (channels, width):
        monkeypatch.setattr(module, "Replay", partial(Replay, memory=0))
    folder, family = written("llama", tmp_path / "model", **WIDE)
    out, result = shrunk(folder, family, tmp_path / "made" / "out", "activation", keep=0.5, of=of)
    assert isinstance(result, Evidence), result
    assert set(folders) == {out.parent} and [*out.parent.iterdir()] == [out]


def test_llamas_heads_divide_the_hidden_size_that_stays(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model", **WIDE)
    out, result = shrunk(folder, family, tmp_path / "out", "l2", keep=0.65, of="hidden", multiple_of=3)
    assert isinstance(result, Evidence) and Checkpoint(out).config["hidden_size"] == 36
    load_model(out, family)


def test_cuts_in_turn_are_a_chain_of_steps(tmp_path: Path) -> None:
    folder, family = written("qwen3", tmp_path / "model", **WIDE)
    given = {"of": "hidden", "compensation": "rescale"}
    out, result = shrunk(folder, family, tmp_path / "out", "activation", keep=0.5, iterations=2, **given)
    assert isinstance(result, Evidence) and "32 of 64" in result.note, result
    first, _ = shrunk(folder, family, tmp_path / "first", "activation", keep=0.75, **given)
    second, _ = shrunk(first, family, tmp_path / "second", "activation", keep=2 / 3, **given)
    assert all(torch.equal(tensor, Checkpoint(second).load(info.name)) for info, tensor in Checkpoint(out).items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "model", "out", "second"]


@pytest.mark.parametrize(
    ("kind", "changes"), [("llama", WIDE), ("gemma", WIDE), ("nemotron", WIDE), ("t5", {"d_model": 64})]
)
def test_rescaling_is_the_factor_of_least_squares(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """By what each norm of the dense model gives, its own class, and the same norm with the channels that stay alone."""
    folder, family = written(kind, tmp_path / "model", **changes)
    random_everywhere(folder)
    whole = shape(Checkpoint(folder), family)
    axis = residual.channels(whole, family)
    model = WholeModel.load(folder, family, text(family).batch, "float32")
    stay = list(range(0, 64, 2))
    found = rescaling.factors(model, whole, residual.norms(whole, axis), stay)
    assert found.keys() == {name for name, place in whole.places.items() if place.kind == "norm"}
    for name, factor in found.items():
        module, seen = model.module(name), []
        hook = module.register_forward_hook(lambda module, args, out, seen=seen: seen.append((args[0], out)))
        for rows in model.groups():
            with torch.no_grad():
                model.run(rows)
        hook.remove()
        (states, given), *_ = seen
        inside = model.mask(slice(None), whole.places[name].side)
        weight = module.weight.detach() + (kind in ("gemma", "nemotron"))
        bias = getattr(module, "bias", None)
        dense = ((given - (0 if bias is None else bias.detach())) / weight)[inside][:, stay].double()
        own = states[inside][:, stay].double()
        own = own - own.mean(-1, keepdim=True) if kind == "nemotron" else own
        own = own / (own.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        least = torch.linalg.lstsq(own.reshape(-1, 1), dense.reshape(-1, 1)).solution.item()
        assert factor == pytest.approx(least, rel=2e-3)


def test_rescaling_multiplies_norms_and_nothing_else(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model", **WIDE)
    plain, near = (
        shrunk(folder, family, tmp_path / how, "l2", keep=0.5, of="hidden", compensation=how)[0]
        for how in ("none", "rescale")
    )
    for info, tensor in Checkpoint(plain).items():
        other = Checkpoint(near).load(info.name)
        ratio = other / tensor if info.name.endswith("norm.weight") else torch.ones(1)
        assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio))
        assert torch.equal(tensor, other) is not info.name.endswith("norm.weight")
    folder, family = written("olmo", tmp_path / "olmo", **WIDE)
    _, wrong = shrunk(folder, family, tmp_path / "out", "l2", keep=0.5, of="hidden", compensation="rescale")
    assert isinstance(wrong, UnsupportedError) and "norms of olmo have no weights" in wrong.message


def test_pooling_is_told_and_a_masked_language_head_is_cut(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM

    bare, family = written("nomic_bert", tmp_path / "bare", **WIDE)
    folder = tmp_path / "model"
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(bare)).save_pretrained(folder)
    assert len(Checkpoint(folder).tensors) > len(Checkpoint(bare).tensors)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 64, "pooling_mode_mean_tokens": true}'
    )
    out, result = shrunk(folder, family, tmp_path / "out", "activation", keep=0.5, of="hidden")
    assert isinstance(result, Evidence), result
    said = json.loads((out / "1_Pooling" / "config.json").read_text())
    assert said == {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    model = load_masked_lm(out)
    assert model.config.hidden_size == 32
    assert result.parameters == sum(one.numel() for one in model.parameters())


def test_what_follows_a_smaller_hidden_size(tmp_path: Path) -> None:
    """Heads and neurons can go next; blocks cannot be reconstructed against states of another width."""
    folder, family = written("llama", tmp_path / "model", **WIDE)
    out, _ = shrunk(folder, family, tmp_path / "out", "random", keep=0.5, of="hidden")
    both, result = shrunk(out, family, tmp_path / "both", "l2", keep=0.5)
    assert isinstance(result, Evidence) and load_model(both, family).config.num_attention_heads == 2
    found: list[Any] = []
    context = Context(family, 0, "auto", lambda: text(family), dense=folder)
    step = single("recover", "reconstruct")
    kinds()["recover"].load()(out, {step: tmp_path / "again"}, context, lambda _, one: found.append(one))
    assert isinstance(found[0], UnsupportedError) and "32 wide" in found[0].message


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("flap", {"keep": 0.5}, "of"),
        ("l2", {"keep": 0.5, "compensation": "least_squares"}, "compensation"),
        ("l2", {"keep": 0.5, "uneven": True}, "uneven"),
        ("l2", {"keep": 0.5, "file": "units.json"}, "file"),
        ("l2", {"neurons": 4}, "of"),
    ],
)
def test_settings_that_do_not_go_with_hidden_channels(name: str, settings: dict[str, Any], key: str) -> None:
    with pytest.raises(PydanticCustomError) as told:
        single("shrink", name, of="hidden", **settings)
    assert told.value.context and told.value.context["at"] == key


def test_labels_and_costs() -> None:
    kind = kinds()["shrink"]
    step = single("shrink", "activation", keep=0.75, of="hidden", multiple_of=16, compensation="rescale")
    assert label(step) == "activation/hidden to 0.75, rescale, multiple_of=16"
    assert (kind.bytes_per_parameter(step), kind.reads_text(step)) == (4.0, True)
    plain = single("shrink", "l2", keep=0.75, of="hidden")
    assert (kind.bytes_per_parameter(plain), kind.reads_text(plain)) == (0.0, False)
    with pytest.raises(PydanticCustomError):
        single("shrink", "l2", keep=0.5, compensation="rescale")
