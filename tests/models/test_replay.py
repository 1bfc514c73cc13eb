"""Replay: the same numbers as stock transformers, for every architecture, block by block."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.batch import Batch
from sparsebench.models.replay.blockwise import Block, Replay
from tests.models.replaying import SHAPES, Stock, assert_close, batch, written


def last_mask(given: Batch) -> Any:
    return given.attention_mask if given.decoder_attention_mask is None else given.decoder_attention_mask


def assert_reads(inputs: Any, rows: Any, name: str) -> None:
    rows = rows.double()
    assert inputs.tokens == len(rows), name
    assert_close(inputs.squares, (rows * rows).sum(0), name)
    assert_close(inputs.gram, rows.T @ rows, name)


def half_gone(weights: Any) -> Any:
    """Every other column of the first dimension zero."""
    changed = weights.clone()
    changed[::2] = 0
    return changed


@pytest.mark.parametrize("shape", SHAPES)
def test_each_stream_is_what_stock_transformers_makes_of_its_weights(shape: str, tmp_path: Path) -> None:
    """Stream 1 loses weights in the first block; stream 2 is touched in no visit and stays dense, as stream 0 does."""
    folder, family = written(shape, tmp_path / "model")
    given = batch(family)
    changed: dict[str, Any] = {}
    seen: dict[int, dict[str, Any]] = {0: {}, 1: {}}
    groups: list[tuple[str, ...]] = []
    fresh = []

    def visit(block: Block) -> None:
        fresh.append(block.same_inputs)
        before = {name: tensor.clone() for name, tensor in block.tensors.items()}
        only = block.observe(0, gram=True, only_inputs=True)
        assert not block.done, "a stream without outputs is to be advanced"
        for stream in seen:
            seen[stream].update(block.observe(stream, gram=True))
        assert all(torch.equal(only[name].gram, seen[0][name].gram) for name in only)
        groups.extend(block.groups)
        if len(fresh) == 1:
            changed.update({name: half_gone(block.tensors[name]) for group in block.groups for name in group})
            block.advance(1, changed)
        assert all(bool((block.tensors[name] == before[name]).all()) for name in before), "the stored weights changed"

    replay = Replay(Checkpoint(folder), family, given, streams=3, group=2)
    replay.run(visit)

    dense, pruned = Stock(folder, family, given), Stock(folder, family, given, changed)
    mask = last_mask(given)
    assert fresh == [True] + [False] * (len(fresh) - 1)
    for stream, stock in ((0, dense), (1, pruned), (2, dense)):
        assert_close(replay.outputs(stream)[mask], stock.final[mask], f"stream {stream}")
    assert float((dense.final - pruned.final)[mask].abs().max()) > 1e-2, "the change must be seen"
    assert set(seen[0]) == set(dense.parts)
    for name in dense.parts:
        assert_reads(seen[0][name], dense.rows(name, given), name)
        assert torch.equal(seen[0][name].gram, seen[0][name].gram.T)
        if name not in changed and name.split(".")[-2] not in ("pos_key_proj", "pos_query_proj"):
            # A block is observed with its stored weights: in the first one both streams read the same.
            in_first = any(name.startswith(first.rpartition(".0.")[0] + ".0.") for first in changed)
            assert_reads(seen[1][name], (dense if in_first else pruned).rows(name, given), name)
    for group in groups:
        assert len({id(seen[0][name]) for name in group}) == 1
    assert sorted(name for group in groups for name in group) == sorted(seen[0])
    assert len({id(inputs) for inputs in seen[0].values()}) == len(groups)


def test_a_model_of_16_bits_is_replayed_in_the_precision_that_is_asked_for(tiny_llama: Path, tmp_path: Path) -> None:
    load_model(tiny_llama, "decoder", "float32").save_pretrained(tmp_path / "wide")
    given = batch("decoder")
    seen: dict[str, dict[str, Any]] = {}
    for name, folder, dtype in (("told", tiny_llama, "float32"), ("stored", tmp_path / "wide", "auto")):
        found = seen.setdefault(name, {})
        replay = Replay(Checkpoint(folder), "decoder", given, dtype=dtype, group=2)
        replay.run(lambda block, found=found: found.update(block.observe(0, True)))
        found["outputs"] = replay.outputs(0)
    assert_close(seen["told"]["outputs"], seen["stored"].pop("outputs"), "outputs")
    for name, inputs in seen["stored"].items():
        assert_close(seen["told"][name].gram, inputs.gram, name)
