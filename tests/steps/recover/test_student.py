"""Students described by their numbers: what of the teacher each begins with, entry by entry, and what training makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.steps.recover import student
from sparsebench.steps.recover.reading import TrainingText
from sparsebench.steps.recover.teacher import DistillationLoss
from sparsebench.steps.registry import single
from tests.models.replaying import batch, written
from tests.steps.recover.making import made, step

EVERY = range(0, 32, 2)
"""Of 32 numbers, every other one."""


def begun(teacher: Path, family: Any, folder: Path, **described: Any) -> str:
    return student.write_student(Checkpoint(teacher), family, described, 0, folder)


def test_a_decoder_takes_heads_with_their_groups_and_every_so_manyeth_number(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense", num_hidden_layers=5)
    told = begun(dense, family, tmp_path / "out", layers=[1, 4], hidden=16, neurons=24, heads=2, head_size=4)
    old, new = Checkpoint(dense), Checkpoint(tmp_path / "out")
    # Two heads of the first of two groups that share keys and values; of each head of 8 numbers every other one.
    heads = [0, 2, 4, 6, 8, 10, 12, 14]
    rows = {"self_attn.q_proj": heads, "self_attn.o_proj": EVERY, "mlp.down_proj": EVERY}
    rows |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), heads[:4])
    rows |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), range(0, 48, 2))
    columns = {"self_attn.o_proj": heads, "mlp.down_proj": range(0, 48, 2)}
    for block, source in enumerate((1, 4)):
        for module, row in rows.items():
            given = old.load(f"model.layers.{source}.{module}.weight")
            wanted = given[list(row)][:, list(columns.get(module, EVERY))]
            assert torch.equal(new.load(f"model.layers.{block}.{module}.weight"), wanted), module
        norm = old.load(f"model.layers.{source}.input_layernorm.weight")[list(EVERY)]
        assert torch.equal(new.load(f"model.layers.{block}.input_layernorm.weight"), norm)
    table = old.load("model.embed_tokens.weight")
    assert torch.equal(new.load("model.embed_tokens.weight"), table[:, list(EVERY)])
    assert (new.config["num_key_value_heads"], new.config["num_hidden_layers"], new.config["head_dim"]) == (1, 2, 4)
    assert "blocks 1, 4" in told and "drawn" not in told


def test_fused_and_turned_matrices(tmp_path: Path) -> None:
    """GPT-2 has queries, keys and values of all heads one behind another, along the columns."""
    dense, family = written("gpt2", tmp_path / "dense")
    begun(dense, family, tmp_path / "out", layers=1, hidden=16, heads=2)
    old, new = Checkpoint(dense), Checkpoint(tmp_path / "out")
    name = next(name for name in old.tensors if name.endswith("h.0.attn.c_attn.weight"))
    heads = [*range(8), *range(16, 24)]
    columns = [part * 32 + one for part in range(3) for one in heads]
    wanted = old.load(name)[list(EVERY)][:, columns]
    assert torch.equal(new.load("transformer.h.0.attn.c_attn.weight"), wanted)
    bias = old.load(name.replace("weight", "bias"))[columns]
    assert torch.equal(new.load("transformer.h.0.attn.c_attn.bias"), bias)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "bert", "t5", "modernbert"])
def test_stock_transformers_loads_what_was_begun(kind: str, tmp_path: Path) -> None:
    dense, family = written(kind, tmp_path / "dense")
    begun(dense, family, tmp_path / "out", layers=1, hidden=16, neurons=24, heads=2)
    model = load_model(tmp_path / "out", family)
    own = model.config.get_text_config()
    assert (own.hidden_size, own.num_attention_heads, own.num_hidden_layers) == (16, 2, 1)
    assert own.vocab_size == Checkpoint(dense).config["vocab_size"]


def test_a_fused_matrix_of_unknown_order_is_drawn_by_the_seed_and_the_rest_is_taken(tmp_path: Path) -> None:
    dense, family = written("codegen", tmp_path / "dense")
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        student.write_student(Checkpoint(dense), family, {"hidden": 16}, seed, tmp_path / name)
    one, again, other = (Checkpoint(tmp_path / name) for name in ("one", "again", "other"))
    for name in one.tensors:
        assert torch.equal(one.load(name), again.load(name))
        assert torch.equal(one.load(name), other.load(name)) != ("qkv_proj" in name), name


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_student_is_distilled_reloads_and_the_same_seed_gives_the_same_weights(kind: str, tmp_path: Path) -> None:
    dense, family = written(kind, tmp_path / "dense", **({"num_hidden_layers": 3} if kind == "llama" else {}))
    asked = step("distill", student={"layers": 1, "hidden": 16, "heads": 2}, match="hidden_mse")
    one, again = (made(dense, family, tmp_path / name, asked, dense) for name in ("one", "again"))
    assert min(point.held_out for point in one.curve) < 0.97 * one.curve[0].held_out
    assert "hidden 16, heads 2" in one.note
    assert one.parameters < sum(info.numel for info in Checkpoint(dense).tensors.values()) / 2
    first, second = (Checkpoint(tmp_path / name) for name in ("one", "again"))
    assert all(torch.equal(first.load(name), second.load(name)) for name in first.tensors)
    assert one.curve == again.curve
    assert load_model(tmp_path / "one", family).config.hidden_size == 16
    told = json.loads((tmp_path / "one" / "sparsebench.json").read_text())
    assert told["student"] == {"layers": 1, "hidden": 16, "heads": 2}
    assert not [path for path in tmp_path.iterdir() if path.name not in ("dense", "one", "again")]


def test_a_pruned_models_student_keeps_the_zeros_that_it_takes(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense", num_hidden_layers=3)
    made(dense, family, tmp_path / "pruned", single("prune", "magnitude", sparsity=0.5), dense)
    found = made(tmp_path / "pruned", family, tmp_path / "out", step("distill", student={"layers": [0, 2]}), dense)
    assert found.zeros == found.already_zero == pytest.approx(found.prunable / 2, rel=0.01)


def test_hidden_states_of_another_width_are_compared_through_a_projection(tmp_path: Path) -> None:
    """Token by token in numpy, from what stock transformers gives."""
    dense, family = written("llama", tmp_path / "dense", num_hidden_layers=4)
    begun(dense, family, tmp_path / "small", layers=2, hidden=16, heads=2)
    small, large = (load_model(tmp_path / name, family, "float32") for name in ("small", "dense"))
    settings = step("distill", match="hidden_mse", match_weight=0.5, top_k=0).settings
    text = TrainingText(family, batch(family))
    loss = DistillationLoss(small, [large], family, text, settings, torch.device("cpu"))
    loss.prepare(3, 1)
    rows = [0, 2]
    with torch.no_grad():
        found = float(loss(rows, 0))
        given, mask = text.inputs(rows), text.mask(rows).numpy()
        own, theirs = (model(**given, output_hidden_states=True) for model in (small, large))
    p, q = (torch.log_softmax(said.logits.double(), -1).numpy() for said in (theirs, own))
    tokens = [tuple(place) for place in np.argwhere(mask)]
    divergence = np.mean([(np.exp(p[place]) * (p[place] - q[place])).sum() for place in tokens])
    matches = []
    for layer, (one, other) in zip(loss.projections, ((1, 2), (2, 4)), strict=True):
        weight, bias = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
        left, right = own.hidden_states[one].double().numpy(), theirs.hidden_states[other].double().numpy()
        matches.append(np.mean([np.square(weight @ left[place] + bias - right[place]).mean() for place in tokens]))
    assert found == pytest.approx(divergence + 0.5 * np.mean(matches), rel=1e-4)


def test_the_hidden_size_beside_a_pooling_is_the_students(tmp_path: Path) -> None:
    dense, family = written("bert", tmp_path / "dense")
    pooling = dense / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    pooling.write_text('{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true}')
    begun(dense, family, tmp_path / "out", hidden=16)
    stated = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert stated == {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}


def test_what_cannot_be_a_student_is_refused(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    for described, words in (
        ({"layers": 3}, "3 blocks, where the teacher has 2"),
        ({"layers": [0, 2]}, "block 2"),
        ({"hidden": 64}, "would be"),
        ({"hidden": 30, "heads": 4}, "stock transformers has no llama"),
        ({"heads": 3, "key_heads": 3}, "not a multiple"),
        ({"key_heads": 3}, "4 heads do not divide into 3 groups"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            made(dense, family, tmp_path / "out", step("distill", student=described), dense)
    other, family = written("gpt2", tmp_path / "gpt2")
    with pytest.raises(UnsupportedError, match="no key for it"):
        made(other, family, tmp_path / "out", step("distill", student={"head_size": 4}), other)
    assert not (tmp_path / "out").exists()
