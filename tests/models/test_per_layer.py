"""Widths of their own for blocks: what is cut unevenly says what the model with zeros says, wherever it is loaded."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.models.modules.load import load_model
from sparsebench.models.modules.operations import operations_per_token
from sparsebench.models.replay.blockwise import Replay
from sparsebench.models.shape.architectures import ARCHITECTURES, feed_forward_widths
from sparsebench.models.shape.axes import Axis, shape_of
from sparsebench.steps.cut_model import without_blocks, write_smaller
from sparsebench.steps.registry import single
from tests.making import make
from tests.models.replaying import batch, rewrite, written
from tests.models.test_axes import cut_as_zeros_say, random_everywhere
from tests.steps.shrink.making import four_blocks, refused, shrunk, text

USUAL = ("bert", "gpt2", "llama", "phi3")
UNEVEN = [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.long)
    for name, how in sorted(ARCHITECTURES.items())
    if MODEL_TYPES.get(name, "encoder-decoder") != "encoder-decoder" and how.neurons and not how.mixture
]


def cut(folder: Path, family: Any) -> Path:
    """A model with other widths in every block."""
    gone: dict[Axis, set[int]] = {}
    for axis in shape_of(Checkpoint(folder), family).axes:
        lost = min(axis.units - 1, axis.layers[0] + (axis.kind == "neurons"))
        gone[axis] = {*range(1, 1 + lost)}
    return cut_as_zeros_say(folder, family, gone)


@pytest.mark.parametrize("kind", UNEVEN)
def test_what_is_zero_can_go_from_some_blocks_alone(kind: str, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    random_everywhere(folder)
    smaller, zeros = cut(folder, family), tmp_path / "zeros"
    said = json.loads((smaller / "config.json").read_text())["per_layer_config"]
    assert len({json.dumps(own) for own in said.values()}) > 1 or len(said) == 1
    # Block by block, as calibration reads it, and its shape again, as another step reads it.
    replay = Replay(Checkpoint(smaller), family, batch(family), dtype="float32")
    replay.run(lambda block: None)
    whole = Replay(Checkpoint(zeros), family, batch(family), dtype="float32")
    whole.run(lambda block: None)
    assert torch.allclose(replay.outputs(0), whole.outputs(0), atol=1e-4)
    pairs = zip(shape_of(Checkpoint(folder), family).axes, shape_of(Checkpoint(smaller), family).axes, strict=True)
    for dense, left in pairs:
        more = 1 if dense.kind == "neurons" else 0
        assert dense.units - left.units == min(dense.units - 1, dense.layers[0] + more)


def test_uneven_widths_are_those_of_one_threshold(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, family = four_blocks(
        "llama", tmp_path / "model", hidden_size=48, num_attention_heads=6, num_key_value_heads=3
    )
    model = Checkpoint(folder)
    for name in ("l2", "flap"):
        more = {"compensation": "none"}
        out, result = shrunk(folder, family, tmp_path / name, name, keep=0.6, uneven=True, **more)
        _, same = shrunk(folder, family, tmp_path / f"{name}-even", name, keep=0.6, of="neurons", **more)
        assert "per_layer_config" in result.note and "per_layer_config" not in same.note
        assert "stock transformers refuses it" in json.loads((out / "sparsebench.json").read_text())["loads"]
        widths = [axis.units for axis in shape_of(Checkpoint(out), family).axes if axis.kind == "neurons"]
        assert len(set(widths)) > 1
        if name == "l2":
            assert sum(widths) == 4 * round(0.6 * 48)
            squares = torch.zeros(4, 48)
            for layer in range(4):
                for kind, dim in (("gate", 1), ("up", 1), ("down", 0)):
                    squares[layer] += model.load(f"model.layers.{layer}.mlp.{kind}_proj.weight").square().sum(dim)
            threshold = squares.flatten().sort(descending=True).values[sum(widths) - 1]
            assert widths == (squares >= threshold).sum(1).tolist()
        left = sum(one.numel() for one in load_model(out, family).parameters())
        assert result.parameters == left
        with pytest.raises(Exception, match="per-layer"):
            AutoModelForCausalLM.from_pretrained(out)


def test_as_many_heads_everywhere_may_still_need_each_blocks_own_number(tmp_path: Path) -> None:
    """Llama's one number of heads divides the hidden size: 3 of 64 do not, and each block can say so."""
    folder, family = four_blocks(
        "llama", tmp_path / "model", hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=16
    )
    names = tmp_path / "heads.json"
    names.write_text(json.dumps({"heads": {str(block): {"go": [block % 4]} for block in range(4)}}))
    out, result = shrunk(folder, family, tmp_path / "out", "list", file=str(names))
    assert "3 of 4 heads" in result.note
    assert len(json.loads((out / "config.json").read_text())["per_layer_config"]) == 4
    assert result.parameters == sum(one.numel() for one in load_model(out, family).parameters())


def test_what_follows_an_uneven_cut(tmp_path: Path) -> None:
    folder, family = four_blocks("llama", tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    out, result = shrunk(folder, family, tmp_path / "out", "l2", keep=0.5, uneven=True)
    found: list[Any] = []
    for step in (single("prune", "wanda", sparsity=0.5), single("quantize", "int8")):
        found += make(out, family, {step: tmp_path / step.verb}, text(family)).values()
        load_model(tmp_path / step.verb, family)
    assert [one.prunable for one in found] == [result.prunable] * 2
    shorter, told = shrunk(out, family, tmp_path / "first", "first", blocks=1)
    assert "per_layer_config" in told.note
    assert told.parameters == sum(one.numel() for one in load_model(shorter, family).parameters())
    assert "loads" in json.loads((shorter / "sparsebench.json").read_text())
    again, _ = shrunk(out, family, tmp_path / "again", "activation", keep=0.5, of="neurons", iterations=2)
    before, after = (
        [axis.units for axis in shape_of(Checkpoint(one), family).axes if axis.kind == "neurons"]
        for one in (out, again)
    )
    assert after == [max(1, round(0.5 * units)) for units in before]
    # Blocks that go take their widths along.
    deep = shape_of(Checkpoint(out), family)
    write_smaller(without_blocks(deep, {"decoder": [0, 2]}), family, tmp_path / "deep", {})
    left = [axis.units for axis in shape_of(Checkpoint(tmp_path / "deep"), family).axes if axis.kind == "neurons"]
    assert left == [before[1], before[3]]
    load_model(tmp_path / "deep", family)
    assert operations_per_token(Checkpoint(out).config, "decoder") < operations_per_token(
        Checkpoint(folder).config, "decoder"
    )


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"7": {"intermediate_size": 24}}, "no block 7"),
        ({"0": {"intermediate_size": 64}}, "64 neurons of 48"),
        ({"0": {"intermediate_size": -1}}, "`intermediate_size`"),
        ({"0": {"sliding_window": 4}}, "`sliding_window`"),
        ({"first": {"intermediate_size": 4}}, "`first`"),
        ([1], "no block with settings"),
    ],
)
def test_what_config_json_says_wrongly_is_refused_by_block_and_key(said: Any, what: str, tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    rewrite(folder / "config.json", per_layer_config=said)
    with pytest.raises(ModelError, match="per_layer_config") as told:
        load_model(folder, family)
    assert what in told.value.message and told.value.hint


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_two_stacks_have_no_widths_of_their_own(kind: str, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    result = refused(folder, family, tmp_path / "out", "l2", keep=0.5, of="neurons", uneven=True)
    assert isinstance(result, UnsupportedError) and "uneven" in result.message and result.hint
    config = json.loads((folder / "config.json").read_text())
    usual_widths = feed_forward_widths(config)
    key = next(iter(ARCHITECTURES[kind].neurons.values()))
    assert feed_forward_widths({**config, "per_layer_config": {"0": {key: 4}}}) == {4, *usual_widths}


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_experts_have_no_widths_of_their_own(kind: str, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    rewrite(folder / "config.json", per_layer_config={"0": {"intermediate_size": 8}})
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        load_model(folder, family)


def test_a_copied_model_counts_its_heads_as_before(tmp_path: Path) -> None:
    folder, family = written("phi3", tmp_path / "model")
    smaller = cut(folder, family)
    model = copy.deepcopy(load_model(smaller, family))
    ids = batch(family).input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load_model(smaller, family)(ids).logits)
        generated = model.generate(ids[:1], max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, ids.shape[1] + 3)
