"""Blocks that go: the folder says what the model says whose blocks are passed by, and the right ones go."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.blockwise import Replay
from sparsebench.models.shape.architectures import ARCHITECTURES
from sparsebench.models.shape.axes import shape_of
from sparsebench.steps.cut_model import without_blocks, write_smaller
from sparsebench.steps.registry import single
from sparsebench.steps.shrink import depth
from sparsebench.steps.shrink.whole import WholeModel
from tests.making import attempt
from tests.steps.shrink.making import four_blocks, refused, shrunk, text

SLIDING = {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]}
PLAIN = ("llama", "gpt2", "bert", "t5", "umt5", "bart", "falcon", "longt5", "nomic_bert", "deberta-v2")
EXACT: dict[str, Any] = {kind: {} for kind in PLAIN} | {
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
    "gemma2": {**SLIDING, "sliding_window": 4},
    "gemma3_text": {**SLIDING, "sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    # Blocks that have no experts, by their number, by a list and by being first.
    "qwen3_moe": {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "deepseek_v3": {"first_k_dense_replace": 2},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "gpt_oss": {**SLIDING, "sliding_window": 4},
}
"""Types whose config.json says something of single blocks, and one of each layout; the others are looked at in the long tests."""
KINDS = [*EXACT] + [
    pytest.param(kind, marks=pytest.mark.long)
    for kind, how in sorted(ARCHITECTURES.items())
    if how.layers and kind in MODEL_TYPES and kind not in EXACT
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_the_model_whose_blocks_are_passed_by(kind: str, tmp_path: Path) -> None:
    folder, family = four_blocks(kind, tmp_path / "model", **EXACT.get(kind, {}))
    found = shape_of(Checkpoint(folder), family)
    removed = {side: [0, 2] if number == 0 else [0, 3] for number, side in enumerate(found.blocks)}
    if found.architecture.pinned:
        removed = {side: [1, 2] for side in removed}
    write_smaller(without_blocks(found, removed), family, tmp_path / "smaller", {})
    whole = WholeModel.load(folder, family, text(family).batch, "auto")
    smaller = WholeModel.load(tmp_path / "smaller", family, text(family).batch, "auto")
    assert {side: len(own) for side, own in smaller.blocks.items()} == dict.fromkeys(found.blocks, 2)
    rows = slice(0, 1)
    if kind != "xglm":  # transformers gives its attention a lowest number that only float32 has
        whole.model.double()
        smaller.model.double()
    with torch.no_grad():
        dense = whole.run(rows)
        with whole.without([(side, index) for side, gone in removed.items() for index in gone]):
            passed = whole.run(rows)
        alone = smaller.run(rows)
    assert torch.allclose(alone, passed, atol=1e-6), float((alone - passed).abs().max())
    assert not torch.allclose(alone, dense, atol=1e-2)


def test_a_first_block_unlike_the_others_stays(tmp_path: Path) -> None:
    folder, family = four_blocks("modernbert", tmp_path / "model")
    result = shrunk(folder, family, tmp_path / "first", "first", blocks=3)[1]
    assert "without 1, 2, 3" in result.note
    load_model(tmp_path / "first", family)
    error = refused(folder, family, tmp_path / "none", "first", blocks=4)
    assert "first 1 always stay" in error.message


def watched(model: WholeModel) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The slow reference: by side, what every block reads and returns (samples, length, width) as the whole model runs."""
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {side: [] for side in model.blocks}
    for side, own in model.blocks.items():
        for block in own:
            block.register_forward_hook(
                lambda _, args, given, out, side=side: seen[side].append(
                    (args[0] if args else given["hidden_states"], out[0] if isinstance(out, tuple) else out)
                ),
                with_kwargs=True,
            )
    with torch.no_grad():
        model.run(slice(None))
    return seen


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_the_scores_are_those_of_the_whole_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Influence is one minus the cosine of a block's input and output; angles are those of samples' last tokens."""
    folder, family = four_blocks(kind, tmp_path / "model")
    given = text(family)
    model = WholeModel.load(folder, family, given.batch, "auto")
    influences = depth.influences(Replay(Checkpoint(folder), family, given.batch, group=2))
    states = depth.states_of_last_tokens(Replay(Checkpoint(folder), family, given.batch, group=2))
    every = slice(None)
    for side, pairs in watched(model).items():
        inside = model.mask(every, side)
        expected = [
            1 - float(torch.nn.functional.cosine_similarity(before[inside], after[inside], dim=-1).double().mean())
            for before, after in pairs
        ]
        assert influences[side] == pytest.approx(expected, abs=1e-6)
        last = [int(row.nonzero().max()) for row in inside]
        for index, whole in enumerate([*(before for before, _ in pairs), pairs[-1][1]]):
            own = torch.stack([sample[place] for sample, place in zip(whole, last, strict=True)])
            assert torch.allclose(states[side][index], own, atol=1e-5)
    # No step of theirs has the whole model in memory.
    monkeypatch.setattr(WholeModel, "load", None)
    if len(influences) == 1:
        removed = shrunk(folder, family, tmp_path / "two", "influence", blocks=2)[1]
        lowest = sorted(sorted(range(4), key=lambda index: expected[index])[:2])
        assert removed.note.endswith(f"without {lowest[0]}, {lowest[1]}")
        turned = shrunk(folder, family, tmp_path / "angular", "angular", blocks=2)[1]
        first = depth.nearest_run(states[side], [0, 1, 2, 3], 2)[0]
        assert turned.note.endswith(f"without {first}, {first + 1}")


def test_the_run_of_blocks_across_which_states_turn_least() -> None:
    angles = [0.0, 0.9, 1.0, 1.05, 2.0]  # rad, before block 0, 1, 2, 3 and after
    states = torch.tensor([[[torch.tensor(a).cos(), torch.tensor(a).sin()]] for a in angles])
    assert depth.nearest_run(states, [0, 1, 2, 3], 1) == [2]
    assert depth.nearest_run(states, [0, 1, 2, 3], 2) == [1, 2]
    assert depth.nearest_run(states, [2, 3], 2) == [2, 3]


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_sleb_removes_one_block_after_the_other_by_the_loss_of_what_is_left(kind: str, tmp_path: Path) -> None:
    """The slow reference writes, loads and runs each smaller model; the losses are equal, not only the choice."""
    folder, family = four_blocks(kind, tmp_path / "model")
    model = WholeModel.load(folder, family, text(family).batch, "auto")
    found = shape_of(Checkpoint(folder), family)
    gone: list[tuple[str, int]] = []
    for _ in range(2):
        for side in found.blocks:
            tried = [(side, index) for index in range(4) if (side, index) not in gone]
            losses = {}
            for place in tried:
                removed = {one: sorted(index for own, index in [*gone, place] if own == one) for one in found.blocks}
                out = tmp_path / f"without-{sorted([*gone, place])}"
                write_smaller(without_blocks(found, removed), family, out, {})
                losses[place] = _loss(model, out)
            assert model.losses(gone, tried) == pytest.approx(losses, rel=1e-5)
            gone.append(min(losses, key=lambda place: losses[place]))
    order = depth.greedy(model, {stack: [0, 1, 2, 3] for stack in found.blocks}, 2)
    assert order == {stack: [index for other, index in gone if other == stack] for stack in found.blocks}


def _loss(whole: WholeModel, out: Path) -> float:
    """Of the model in a folder, on the whole text at once."""
    smaller, every = WholeModel.load(out, whole.family, whole.batch, "auto"), slice(None)
    with torch.no_grad():
        said, dense, inside = smaller.run(every), whole.run(every), whole.mask(every, whole.output_stack)
    if whole.family == "encoder":
        return float((said[inside] - dense[inside]).square().sum() / dense[inside].square().sum())
    return float(torch.nn.functional.cross_entropy(said[:, :-1].flatten(0, 1), whole.next_tokens(every).flatten()))


def test_one_pass_makes_several_numbers_of_blocks_and_one_fails_alone(tmp_path: Path) -> None:
    folder, family = four_blocks("t5", tmp_path / "model")
    steps = {single("shrink", "last", blocks=count): tmp_path / str(count) for count in (1, 2, 4)}
    told = {step.settings.blocks: result for step, result in attempt(folder, family, steps).items()}
    assert isinstance(told[4], UnsupportedError) and "4 blocks" in told[4].message
    for count in (1, 2):
        config = json.loads((tmp_path / str(count) / "config.json").read_text())
        assert config["num_layers"] == config["num_decoder_layers"] == 4 - count
        result = told[count]
        assert result.sweep_size == 2
        assert result.parameters == sum(one.numel() for one in load_model(tmp_path / str(count), family).parameters())


def test_one_stack_of_two(tmp_path: Path) -> None:
    folder, family = four_blocks("t5", tmp_path / "model")
    result = shrunk(folder, family, tmp_path / "out", "random", blocks=2, stacks="decoder")[1]
    assert "encoder" not in result.note
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (4, 2)
    load_model(tmp_path / "out", family)
    # A number that the config has under two names is changed under both.
    gpt2, family = four_blocks("gpt2", tmp_path / "gpt2", num_hidden_layers=4)
    error = refused(gpt2, family, tmp_path / "none", "first", blocks=1, stacks="decoder")
    assert isinstance(error, UnsupportedError) and "one stack" in error.message
    out, _ = shrunk(gpt2, family, tmp_path / "three", "first", blocks=1)
    config = json.loads((out / "config.json").read_text())
    assert config["n_layer"] == config["num_hidden_layers"] == 3 and load_model(out, family)
