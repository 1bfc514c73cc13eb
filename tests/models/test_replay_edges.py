"""Replay at its edges: names, precision, memory, and what it refuses."""

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as with_examples
from hypothesis import settings
from hypothesis import strategies as st

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.models.replay.batch import Batch
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.replay.gather import add_gram
from sparsebench.models.replay.skeleton import build_skeleton
from sparsebench.models.replay.stack_replay import States
from tests.models.model_zoo import small
from tests.models.replaying import Stock, batch, rewrite, rewritten, written


def dense(block: Block) -> None:
    block.observe(0, gram=True)


def test_layers_that_read_the_same_are_one_group(tmp_path: Path) -> None:
    def groups(shape: str) -> list[list[str]]:
        found: list[list[str]] = []
        folder, family = written(shape, tmp_path / shape.replace(":", "-"))

        def visit(block: Block) -> None:
            block.observe(0, gram=False)
            found[:] = [[name.split(".")[-2] for name in group] for group in block.groups]

        Replay(Checkpoint(folder), family, batch(family)).run(visit)
        return found

    assert groups("llama") == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert groups("phi") == [["q_proj", "k_proj", "v_proj", "fc1"], ["dense"], ["fc2"]]
    assert groups("gpt2") == [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]]
    assert groups("t5:gated") == [["q", "k", "v"], ["o"], ["q"], ["k", "v"], ["o"], ["wi_0", "wi_1"], ["wo"]]
    assert groups("deberta-v2:unshared") == [
        ["query_proj", "key_proj", "value_proj"], ["dense"], ["dense"], ["dense"], ["pos_key_proj", "pos_query_proj"],
    ]  # fmt: skip


@settings(deadline=None, max_examples=25)
@with_examples(st.integers(1, 40), st.integers(1, 1100), st.integers(0, 1000))
def test_a_gram_matrix_is_the_sum_of_outer_products(tokens: int, width: int, seed: int) -> None:
    rows = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    gram = torch.zeros(width, width)
    add_gram(gram, rows[: tokens // 2])
    add_gram(gram, rows[tokens // 2 :])
    wanted = (rows.double().T @ rows.double()).triu()
    torch.testing.assert_close(gram.double().triu(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("shape", ["llama", "t5:gated"])
def test_files_in_place_of_memory_change_nothing(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, family = written(shape, tmp_path / "model")
    spill = tmp_path / "spill"
    used = []

    def visit(block: Block) -> None:
        found = block.observe(0, gram=True)
        seen.append(found)
        block.advance(1, {name: torch.zeros_like(block.tensors[name]) for name in block.groups[-1]})
        used.append(spill.is_dir())

    results = []
    for memory in (2 << 30, 0):
        seen: list[dict[str, Any]] = []
        monkeypatch.setattr("sparsebench.models.replay.blockwise.IN_MEMORY", memory)
        monkeypatch.setattr("sparsebench.models.files.checkpoint.MAPPED_BYTES", memory or 1)
        replay = Replay(Checkpoint(folder), family, batch(family), streams=2, spill=spill)
        replay.run(visit)
        results.append((seen, replay.outputs(1)))
    assert used == [False] * (len(used) // 2) + [True] * (len(used) // 2)
    assert not list(spill.iterdir())
    (first, one), (second, other) = results
    assert torch.equal(one, other)
    for before, after in zip(first, second, strict=True):
        assert all(torch.equal(before[name].gram, after[name].gram) for name in before)


def live_bytes() -> int:
    """Bytes of all tensors that anything in this process holds."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and not thing.is_meta:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.long
def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    peaks = {}
    for layers in (2, 6):
        folder, family = written("llama", tmp_path / str(layers), num_hidden_layers=layers, intermediate_size=512)
        replay = Replay(Checkpoint(folder), family, batch(family), streams=2)
        marks: list[int] = []

        def visit(block: Block, marks: list[int] = marks) -> None:
            block.observe(0, gram=True)
            block.advance(0, {})
            marks.append(live_bytes())

        replay.run(visit)
        del replay
        peaks[layers] = max(marks)
    block = sum(info.nbytes for name, info in Checkpoint(folder).tensors.items() if ".layers.1." in name)
    assert peaks[6] - peaks[2] < block / 10


@pytest.mark.parametrize("shape", ["llama", "bert"])
def test_a_prefix_more_or_less_makes_no_difference(shape: str, tmp_path: Path) -> None:
    """Checkpoints of the bare model lack a prefix, those of a model with a head have one; old ones say gamma."""
    folder, family = written(shape, tmp_path / "model")
    given = batch(family)
    prefix = {"llama": "model.", "bert": "bert."}[shape]
    whole = Replay(Checkpoint(folder), family, given)
    whole.run(dense)

    def rename(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensor = tensors.pop(name)
            new = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
            if shape == "bert":
                new = new.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[new] = tensor

    renamed = Replay(Checkpoint(rewritten(folder, rename)), family, given)
    names: list[str] = []
    renamed.run(lambda block: names.extend(block.observe(0, gram=False)))
    assert torch.equal(whole.outputs(0), renamed.outputs(0))
    assert names and all(name.startswith("bert.") == (shape == "bert") for name in names)


@pytest.mark.parametrize(("shape", "dtype"), [("llama", "bfloat16"), ("t5:gated", "bfloat16"), ("t5:gated", "float16")])
def test_a_model_runs_in_its_precision_and_sums_are_float32(shape: str, dtype: str, tmp_path: Path) -> None:
    folder, family = written(shape, tmp_path / "model")
    rewritten(folder, lambda tensors: tensors.update({k: v.to(getattr(torch, dtype)) for k, v in tensors.items()}))
    rewrite(folder / "config.json", dtype=dtype)
    given = batch(family)
    stock = Stock(folder, family, given)
    seen: dict[str, Any] = {}
    replay = Replay(Checkpoint(folder), family, given)
    replay.run(lambda block: seen.update(block.observe(0, gram=True)))
    outputs = replay.outputs(0)
    assert str(outputs.dtype) == f"torch.{dtype}" and outputs.dtype == stock.final.dtype
    mask = given.attention_mask if given.decoder_attention_mask is None else given.decoder_attention_mask
    torch.testing.assert_close(outputs[mask], stock.final[mask], rtol=0.1, atol=0.1)
    for name, inputs in seen.items():
        assert inputs.squares.dtype == inputs.gram.dtype == torch.float32
        rows = stock.rows(name, given).double()
        torch.testing.assert_close(inputs.squares.double().sum(), (rows * rows).sum(), rtol=0.02, atol=0, msg=name)


def test_what_float16_cannot_hold_runs_in_float32(tmp_path: Path) -> None:
    """T5's wo, as in stock transformers: its outputs reach hundreds of thousands here."""
    folder, family = written("t5:gated", tmp_path / "model")

    def change(tensors: dict[str, Any]) -> None:
        tensors |= {name: tensor.half() for name, tensor in tensors.items()}
        scale = torch.linspace(100, 30000, 32).half()
        tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"] = scale[:, None].repeat(1, 48)

    rewritten(folder, change)
    rewrite(folder / "config.json", dtype="float16")
    given = batch(family)
    replay = Replay(Checkpoint(folder), family, given)
    replay.run(dense)
    wanted = Stock(folder, family, given).final
    torch.testing.assert_close(replay.outputs(0)[given.decoder_attention_mask], wanted[given.decoder_attention_mask])


@pytest.mark.parametrize("shape", ["deberta-v2", "t5"])
def test_a_sample_of_padding_adds_nothing(shape: str, tmp_path: Path) -> None:
    folder, family = written(shape, tmp_path / "model")
    given = batch(family)
    blank = [torch.zeros_like(tensor[:1]) for tensor in vars(given).values() if tensor is not None]
    tensors = [tensor for tensor in vars(given).values() if tensor is not None]
    longer = Batch(*(torch.cat([tensor, empty]) for tensor, empty in zip(tensors, blank, strict=True)))
    seen: list[dict[str, Any]] = [{}, {}]
    for found, texts in zip(seen, (given, longer), strict=True):
        replay = Replay(Checkpoint(folder), family, texts, group=1)
        replay.run(lambda block, found=found: found.update(block.observe(0, True)))
    for name, inputs in seen[0].items():
        assert inputs.tokens == seen[1][name].tokens
        assert torch.equal(inputs.gram, seen[1][name].gram), name


def test_progress_counts_both_sides(tmp_path: Path) -> None:
    folder, family = written("t5", tmp_path / "model")
    steps: list[tuple[int, int]] = []
    order: list[tuple[str, int, bool]] = []
    replay = Replay(Checkpoint(folder), family, batch(family))
    replay.run(lambda at: order.append((at.stack, at.index, at.same_inputs)), lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert order == [(side, index, True) for side in ("encoder", "decoder") for index in (0, 1)]


def test_every_model_type_is_answered_for_without_weights() -> None:
    refused = {}
    for name, family in MODEL_TYPES.items():
        try:
            build_skeleton(small(name), family)
        except UnsupportedError as error:
            refused[name] = error.message
    assert set(refused) == {"albert", "whisper"}
    assert "share one set of weights" in refused["albert"]
    with pytest.raises(ModelError, match="no model type 'lama'"):
        build_skeleton({"model_type": "lama"}, "decoder")


def test_tensors_that_do_not_fit_are_named_before_any_work(tmp_path: Path) -> None:
    def refused(number: int, change: Callable[[dict[str, Any]], object]) -> str:
        folder, family = written("llama", tmp_path / str(number))
        with pytest.raises(ModelError) as raised:
            Replay(Checkpoint(rewritten(folder, change)), family, batch(family))
        return str(raised.value)

    up = "model.layers.1.mlp.up_proj.weight"
    assert f"{up} is missing" in refused(1, lambda tensors: tensors.pop(up))
    assert "model.norm.weight is missing" in refused(2, lambda tensors: tensors.pop("model.norm.weight"))
    assert f"{up}: the file has (3, 4)" in refused(3, lambda tensors: tensors.update({up: torch.zeros(3, 4)}))
    extra = "model.layers.1.mlp.extra_proj.weight"
    assert f"{extra}: the model has no such layer" in refused(4, lambda t: t.update({extra: torch.zeros(8, 8)}))


def test_batches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder, family = written("t5", tmp_path / "model")
    ids, mask = torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    for given, words in (
        (Batch(ids, mask), "needs decoder_input_ids"),
        (Batch(ids + 96, mask, ids), "input_ids reaches 96 in a vocabulary of 96"),
        (Batch(ids, mask[:1], ids), r"its mask is \(1, 4\)"),
        (Batch(ids, ~mask, ids), "0 tokens"),
        (Batch(ids, mask, ids[:1]), r"decoder_input_ids is \(1, 4\)"),
    ):
        with pytest.raises(ModelError, match=words):
            Replay(Checkpoint(folder), family, given)


def test_infinity_is_refused_with_the_layer_that_reads_it(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    rewritten(folder, lambda tensors: tensors[name].fill_(1e38))
    replay = Replay(Checkpoint(folder), family, batch(family))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.down_proj\.weight: what its layer reads is NaN"):
        replay.run(dense)
    with pytest.raises(ModelError, match="decoder block 1: what it returns is NaN"):
        replay.run(lambda block: block.advance(0, {}))


def test_replacements_must_fit_the_block(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    name = "model.layers.0.mlp.up_proj.weight"

    def visit(block: Block) -> None:
        with pytest.raises(ModelError, match=r"lm_head\.weight: .* in decoder block 0"):
            block.advance(0, {"lm_head.weight": torch.zeros(1)})
        with pytest.raises(ModelError, match=r"up_proj\.weight: \(1,\) in .*\[48, 32\]"):
            block.advance(0, {name: torch.zeros(1)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Replay(Checkpoint(folder), family, batch(family)).run(visit)


def test_a_model_that_reaches_further_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.models.llama.modeling_llama import LlamaModel

    def forward(self: Any, input_ids: Any, attention_mask: Any) -> Any:
        states = [self.embed_tokens(input_ids)]
        positions = self.rotary_emb(states[0], position_ids=attention_mask.cumsum(-1) - 1)
        for index, layer in enumerate(self.layers):
            read = states[-1] + (states[added[1]] if index == added[0] else 0)
            states.append(layer(read, attention_mask=None, position_embeddings=positions))
        return BaseModelOutput(last_hidden_state=self.norm(states[-1]))

    monkeypatch.setattr(LlamaModel, "forward", forward)
    folder, family = written("llama", tmp_path / "model", num_hidden_layers=3)
    added = (1, 0)  # to what the second block reads, the embeddings, which can be looked up again
    Replay(Checkpoint(folder), family, batch(family, padded=False)).run(dense)
    added = (2, 0)
    Replay(Checkpoint(folder), family, batch(family, padded=False)).run(dense)
    added = (2, 1)
    with pytest.raises(UnsupportedError, match="decoder block 2: it needs values from earlier blocks"):
        Replay(Checkpoint(folder), family, batch(family, padded=False)).run(dense)


def test_groups_must_agree_on_the_form_of_states() -> None:
    states = States(1, 2)
    states.write(0, slice(0, 1), torch.zeros(1, 3, 4))
    with pytest.raises(
        UnsupportedError, match=r"\(3, 4\) torch.float32 in one group of samples and \(3, 4\) torch.float16"
    ):
        states.write(0, slice(1, 2), torch.zeros(1, 3, 4, dtype=torch.float16))
    states.free_write_buffers()
    states.write(0, slice(1, 2), torch.zeros(1, 3, 8, dtype=torch.float16))


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ModelError, match="no room for 96 bytes of hidden states"):
        States(1, 2, tmp_path).write(0, slice(0, 1), torch.zeros(1, 3, 4))
    assert not list(tmp_path.iterdir())
