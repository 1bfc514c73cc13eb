"""Errors by block: against hidden states that transformers itself returns, and each block tried by itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.batch import Batch
from sparsebench.structure.outputs import OutputsResult, compare_outputs
from tests.models.replaying import rewritten, written
from tests.steps.shrink.making import text


def changed(parent: Path, out: Path, block: int | None, scale: float = 0.9) -> Path:
    """A copy whose matrices of one block (None: of all) are smaller."""

    def shrink(weights: dict[str, Any]) -> None:
        for name, tensor in weights.items():
            numbers = [int(part) for part in name.split(".") if part.isdigit()]
            if tensor.ndim == 2 and numbers and block in (None, numbers[0]):
                tensor.mul_(scale)

    return rewritten(shutil.copytree(parent, out), shrink)


def found(dense: Path, variant: Path, family: Any, batch: Batch) -> OutputsResult:
    return compare_outputs(dense, variant, family, batch, "float32")


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "gpt2"])
def test_a_model_is_not_off_from_itself_and_errors_begin_where_it_was_changed(kind: str, tmp_path: Path) -> None:
    parent, family = written(kind, tmp_path / "parent")
    batch = text(family, 4).batch
    same = found(parent, parent, family, batch)
    assert {(one.own, one.error) for one in same.blocks} == {(0.0, 0.0)}
    second = found(parent, changed(parent, tmp_path / "second", 1), family, batch)
    for one in second.blocks:
        # The decoder reads the encoder's output too, which is off; a block's own error leaves that out.
        through = one.side == "decoder" and family == "encoder-decoder"
        assert (one.own > 0) == (one.block == 1)
        assert (one.error > 0) == (one.block >= 1 or through)
        if one.block == 1 and not through:
            assert one.own == pytest.approx(one.error, rel=1e-6), "all that it is given is the dense model's"


def test_errors_are_those_of_the_hidden_states(tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    variant, batch = changed(parent, tmp_path / "variant", None), text("decoder", 5).batch
    result = found(parent, variant, family, batch)
    mask, states = batch.attention_mask.bool(), []
    inputs = {"input_ids": batch.input_ids, "attention_mask": mask.long()}
    for folder in (parent, variant):
        model: Any = load_model(folder, "decoder", "float32")
        with torch.no_grad():
            states.append(model(**inputs, output_hidden_states=True).hidden_states)
    # transformers returns what each block reads; the last of them is behind the final norm.
    blocks = len(result.blocks)
    for number, one in enumerate(result.blocks[: blocks - 1]):
        left, right = (side[number + 1][mask].double() for side in states)
        assert one.error == pytest.approx(float(((right - left).norm(dim=-1) / left.norm(dim=-1)).mean()), rel=1e-5)
    assert result.tokens == int(mask.sum())
    assert result.blocks[0].own == pytest.approx(result.blocks[0].error, rel=1e-6)


def test_padding_does_not_count(tmp_path: Path) -> None:
    parent, family = written("bert", tmp_path / "parent")
    variant, batch = changed(parent, tmp_path / "variant", None), text("encoder", 6).batch
    mask = batch.attention_mask.clone()
    mask[:, -3:] = False
    other = batch.input_ids.clone()
    other[:, -3:] = 7
    one, two = (found(parent, variant, family, Batch(ids, mask)) for ids in (batch.input_ids, other))
    assert one == two and one.tokens == int(mask.sum())


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    batch = text("decoder", 2).batch
    shorter = changed(parent, tmp_path / "shorter", 0)
    config = json.loads((shorter / "config.json").read_text())
    (shorter / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(UnsupportedError, match="it has 1 blocks where the dense model has"):
        compare_outputs(parent, shorter, family, batch)
    broken = changed(parent, tmp_path / "broken", 0, float("inf"))
    with pytest.raises(ModelError, match="decoder block 0 gives is not finite"):
        found(parent, broken, family, batch)
