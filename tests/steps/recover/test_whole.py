"""The whole model trained: nearer to what it is trained to do, every zero held at every step, rounded as ``quantize`` rounds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsebench import energy
from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import Scheme, open_checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.topology import parts
from sparsebench.steps.calibration import Calibrated, Calibration
from sparsebench.steps.contract import Context
from sparsebench.steps.grid import nearest
from sparsebench.steps.recover import trainer
from sparsebench.steps.recover.qat import RoundedWeight
from sparsebench.steps.recover.reading import TrainingText, draw_samples
from sparsebench.steps.recover.teacher import DistillationLoss
from sparsebench.steps.recover.weights import MaskedParameter
from sparsebench.steps.registry import single
from tests.benchmarks.masked_models import save
from tests.models.replaying import written
from tests.runtime.test_energy import zone
from tests.steps.recover.making import SAMPLES, held_out_loss, made, pruned, step, training_text, zeros_stay


def check(parent: Path, folder: Path, family: Any, found: Any) -> None:
    """Zeros stay, something changed, stock transformers loads it, and what is told of it is so."""
    assert found.curve[0].step == 0 and found.curve[0].loss is None
    assert min(one.held_out for one in found.curve) < 0.97 * found.curve[0].held_out
    assert found.trained_tokens == found.curve[-1].tokens >= 1500
    # Of two stacks a token meets one.
    assert found.operations > (3 if "-" in family else 6) * found.parameters * found.trained_tokens
    assert "the published run read" in found.note and "float32" in found.note
    zeros_stay(parent, folder, family, found)
    load_model(folder, family)
    notes = json.loads((folder / "sparsebench.json").read_text())
    assert notes["tokens"] == 1500 and len(notes["curve"]) == 4


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "gpt2"])
def test_distilled_models_come_nearer_to_dense_and_zeros_stay(kind: str, tmp_path: Path) -> None:
    dense, parent, family = pruned(kind, tmp_path)
    found = made(parent, family, tmp_path / "out", step("distill", top_k=8), dense)
    check(parent, tmp_path / "out", family, found)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_finetuned_models_predict_better_and_zeros_stay(kind: str, tmp_path: Path) -> None:
    dense, parent, family = pruned(kind, tmp_path)
    found = made(parent, family, tmp_path / "out", step("finetune", weight_decay=0.1), dense)
    check(parent, tmp_path / "out", family, found)
    assert found.curve[0].held_out == pytest.approx(held_out_loss(parent, family), rel=1e-4)
    # Six operations for each parameter that a token of the training meets, two for one of what is held out, at every look.
    text, rows = TrainingText(family, training_text(family).batch), range(SAMPLES - round(0.2 * SAMPLES), SAMPLES)
    seen, second = text.batch.attention_mask, text.batch.decoder_attention_mask
    tokens = {"encoder.": int(seen.sum()), "decoder.": 0 if second is None else int(second[:, 1:].sum())}
    met = 0.0
    for name, info in Checkpoint(parent).tensors.items():
        side = name[:8] if "-" in family else ""
        met += info.numel * tokens.get(side, sum(tokens.values())) / sum(tokens.values())
    looked = len(found.curve) * sum(text.counts()[row] for row in rows)
    assert found.operations == pytest.approx(met * (6 * found.trained_tokens + 2 * looked))


def test_an_encoder_is_trained_on_masked_words_where_it_has_the_head(tmp_path: Path) -> None:
    dense = save(tmp_path / "dense", "bert")
    made(dense, "encoder", tmp_path / "pruned", single("prune", "magnitude", sparsity=0.5), dense)
    found = made(tmp_path / "pruned", "encoder", tmp_path / "out", step("finetune"), dense)
    check(tmp_path / "pruned", tmp_path / "out", "encoder", found)
    old, new = Checkpoint(dense), Checkpoint(tmp_path / "out")
    assert any("cls." in name and not torch.equal(old.load(name), new.load(name)) for name in old.tensors)


class Killed(BaseException):
    """The end of a process."""


def killer(at: int) -> Callable[..., None]:
    """Progress that ends when so many optimizer steps are done."""

    def told(done: int, total: int, words: str = "") -> None:
        if "loss" in words and done == at:
            raise Killed

    return told


def counters_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel's energy counters be those in a folder."""
    monkeypatch.setattr(energy, "POWERCAP", folder)


@pytest.mark.parametrize("name", ["distill", "reconstruct"])
def test_joules_are_counted_by_a_counter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, parent, family = pruned("llama", tmp_path)
    counters_in(tmp_path / "none", monkeypatch)
    asked = step(name, tokens=400) if name == "distill" else single("recover", name, epochs=1)
    found = made(parent, family, tmp_path / "out", asked, dense)
    assert (found.joules, found.energy_source) == (None, f"none: no RAPL counters in {tmp_path / 'none'}")
    counter = zone(tmp_path / "some", "intel-rapl:0", "package-0", 0)
    counters_in(tmp_path / "some", monkeypatch)

    def told(done: int, total: int, words: str = "") -> None:
        counter.write_text(str(int(counter.read_text()) + 1000))
        seen.append(done)

    seen: list[int] = []
    found = made(parent, family, tmp_path / "again", asked, dense, progress=told)
    assert found.joules == pytest.approx(len(seen) * 1e-3) and len(seen) > 1
    assert found.energy_source == "RAPL package-0"


@pytest.mark.parametrize(("before", "after"), [("some", "some"), ("some", "none"), ("none", "some")])
def test_joules_before_a_kill_count_and_those_of_a_part_are_none(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training may go on on another machine, one of which has no counter."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    dense, parent, family = pruned("llama", tmp_path)
    counter, asked = zone(tmp_path / "some", "intel-rapl:0", "package-0", 0), step("finetune", tokens=400)

    def training(counters: str, last: int) -> Any:
        def told(done: int, total: int, words: str = "") -> None:
            if done == last:
                raise Killed
            counter.write_text(str(int(counter.read_text()) + 1000))

        counters_in(tmp_path / counters, monkeypatch)
        return made(parent, family, tmp_path / "out", asked, dense, resume=lambda _: tmp_path / "r", progress=told)

    with pytest.raises(Killed):
        training(before, 3)
    found = training(after, 999)
    if before == after:
        # Two steps were told and saved; the third, whose end nobody was told of, is done again.
        assert found.joules == pytest.approx(found.curve[-1].step * 1e-3)
    else:
        assert found.joules is None and found.energy_source.startswith("none: ")
        assert ("no RAPL counters" in found.energy_source) == (after == "none")


def test_matches_with_fewer_blocks(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense", num_hidden_layers=3)
    made(dense, family, tmp_path / "cut", single("shrink", "last", blocks=1), dense)
    for match in ("hidden_mse", "cos", "attention_mse", "attention_ce", "fsp", "nst"):
        asked = step("distill", match=match, tokens=800, alpha=0.5)
        found = made(tmp_path / "cut", family, tmp_path / match, asked, dense)
        assert min(one.held_out for one in found.curve) < found.curve[0].held_out, match


def test_layers_are_compared_as_they_are_paired(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense", num_hidden_layers=4)
    made(dense, family, tmp_path / "half", single("shrink", "last", blocks=2), dense)

    def distilled(match: str, layers: Any) -> Any:
        folder = tmp_path / f"{match}-{len(list(tmp_path.iterdir()))}"
        asked = step("distill", match=match, layers=layers, tokens=100)
        return made(tmp_path / "half", family, folder, asked, dense).curve

    same = distilled("hidden_mse", "uniform")
    assert distilled("hidden_mse", [[1, 2], [2, 4]]) == same != distilled("hidden_mse", [[0, 0], [1, 1], [2, 4]])
    assert distilled("attention_mse", [[2, 4]]) == distilled("attention_mse", "last")
    for match, pair in (("hidden_mse", [3, 4]), ("hidden_mse", [2, 5]), ("attention_ce", [1, 5])):
        with pytest.raises(SparsebenchError, match="the model has 2 layers, and the teacher 4") as caught:
            distilled(match, [[1, 1], pair])
        assert f"layers: {pair}" in str(caught.value)


@pytest.mark.parametrize("schedule", ["linear_decay", "linear_growth"])
def test_the_teachers_part_falls_or_grows(schedule: str, tmp_path: Path) -> None:
    """By the losses of the first step and of one behind the last, and that on held-out text (-1)."""
    student, family = written("llama", tmp_path / "student")
    teacher, _ = written("llama", tmp_path / "teacher", 1)
    text = TrainingText(family, training_text(family, 4).batch)

    def loss(step_number: int, **settings: Any) -> float:
        models = [load_model(folder, family, "float32") for folder in (student, teacher)]
        asked = step("distill", **settings).settings
        distillation = DistillationLoss(models[0], models[1:], family, text, asked, torch.device("cpu"), steps=10)
        with torch.no_grad():
            return float(distillation([0, 1], step_number))

    full, none = loss(-1, alpha=0.8), loss(-1, alpha=0.0)
    assert full != pytest.approx(none, rel=1e-2)
    found = [loss(number, alpha=0.8, alpha_schedule=schedule) for number in (-1, 0, 5, 10)]
    ends = [none, full] if schedule == "linear_growth" else [full, none]
    assert found == pytest.approx([full, ends[0], (full + none) / 2, ends[1]])


def test_products_in_bfloat16_and_weights_in_float32(tmp_path: Path) -> None:
    dense, parent, family = pruned("llama", tmp_path)
    found = made(parent, family, tmp_path / "out", step("distill", precision="bfloat16"), dense)
    assert "calculated in bfloat16" in found.note
    assert min(one.held_out for one in found.curve) < 0.97 * found.curve[0].held_out
    rounded = (
        Checkpoint(tmp_path / "out").load(name)
        for name, part in parts(Checkpoint(parent), family).items()
        if part.prunable
    )
    assert any(not torch.equal(one, one.bfloat16().float()) for one in rounded)


def test_a_training_that_ruins_makes_nothing_worse(tmp_path: Path) -> None:
    dense, parent, family = pruned("llama", tmp_path)
    found = made(parent, family, tmp_path / "out", step("distill", rate=0.9, warm_up=0.0), dense)
    one, other = Checkpoint(parent), Checkpoint(tmp_path / "out")
    assert min(one.held_out for one in found.curve) == found.curve[0].held_out
    assert all(torch.equal(one.load(name), other.load(name)) for name in one.tensors)


@pytest.mark.parametrize(("verb", "later"), [("recover", False), ("prune", False), ("recover", True)])
def test_a_loss_that_is_not_finite_fails(
    verb: str, later: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, steps = DistillationLoss.__call__, list[int]()

    def overflowing(own: Any, rows: Any, number: int) -> torch.Tensor:
        steps.extend([number] if number >= 0 else [])
        return plain(own, rows, number) * (float("nan") if number < 0 and (steps or not later) else 1.0)

    monkeypatch.setattr(DistillationLoss, "__call__", overflowing)
    dense, family = written("llama", tmp_path / "dense")
    asked = step("distill") if verb == "recover" else single("prune", "gradual", sparsity=0.5, tokens=1500, batch=4)
    with pytest.raises(ModelError, match="held-out text is nan after [1-9]" if later else f"{verb}: {asked.name}"):
        made(dense, family, tmp_path / "out", asked, dense)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    made(dense, family, tmp_path / "int8", single("quantize", "int8"), dense)
    with pytest.raises(ModelError, match="its weights are quantized"):
        made(tmp_path / "int8", family, tmp_path / "out", step("finetune"), dense)
    other, _ = written("llama", tmp_path / "other", vocab_size=90)
    with pytest.raises(UnsupportedError, match="vocabulary"):
        made(other, family, tmp_path / "out", step("distill"), dense)
    with pytest.raises(ModelError, match="none is left to train on"):
        made(dense, family, tmp_path / "out", step("distill", held_out=0.9), dense, samples=1)
    for folder in (dense, other):  # as models of several modalities have it
        config = json.loads((folder / "config.json").read_text())
        nested = {"text_config": {"vocab_size": config.pop("vocab_size")}}
        shutil.copytree(folder, tmp_path / f"nested-{folder.name}")
        (tmp_path / f"nested-{folder.name}" / "config.json").write_text(json.dumps(config | nested))
    with pytest.raises(UnsupportedError, match="vocabulary"):
        made(tmp_path / "nested-other", family, tmp_path / "out", step("distill"), tmp_path / "nested-dense")
    heads, _ = written("llama", tmp_path / "heads", num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(UnsupportedError, match="has 2 and the teacher 4"):
        made(heads, family, tmp_path / "out", step("distill", match="attention_mse"), dense)
    bert, family = written("bert", tmp_path / "bert")
    for asked, words in ((step("finetune"), "predicts no masked words"), (step("distill", alpha=0.5), "alpha: 1")):
        with pytest.raises(UnsupportedError, match=words):
            made(bert, family, tmp_path / "out", asked, bert)
    assert not (tmp_path / "out").exists()


def test_a_field_of_the_default_text_is_drawn() -> None:
    asked: list[Calibration] = []

    def take(wanted: Calibration) -> Calibrated:
        asked.append(wanted)
        return training_text("decoder")

    own = single("recover", "finetune", field="question", tokens=100, length=16)
    draw_samples(own, Context("decoder", training_tokens=take), {})
    assert {one.field for one in asked} == {"question"}


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    scheme=st.sampled_from([Scheme(8, None), Scheme(4, 5), Scheme(4, 64)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_rounded_weight_is_that_of_the_stored_one_and_its_gradient_passes(
    rows: int, columns: int, scheme: Scheme, dtype: torch.dtype, transposed: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=draw) * (torch.rand(rows, columns, generator=draw) > 0.5)
    weight = nn.Parameter((matrix.T if transposed else matrix).contiguous())
    masked = MaskedParameter("w", weight, weight.detach() == 0, transposed, dtype)
    rounded = RoundedWeight(masked, scheme)(weight)
    wanted = nearest(matrix.to(dtype), scheme).expanded(dtype).float()
    assert torch.equal(rounded, wanted.T if transposed else wanted)
    assert not rounded[masked.zeros].any()
    factors = torch.randn(weight.shape, generator=draw)
    (rounded * factors).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, factors)


@pytest.mark.parametrize(("kind", "bits"), [("llama", "int4"), ("gpt2", "int4"), ("t5", "int4"), ("llama", "int8")])
def test_the_loss_is_that_of_the_quantized_model_and_zeros_stay(kind: str, bits: str, tmp_path: Path) -> None:
    dense, parent, family = pruned(kind, tmp_path)
    groups = {"group": 16} if bits == "int4" else {}
    found = made(parent, family, tmp_path / "out", step("finetune", qat=bits, **groups), dense)
    assert min(point.held_out for point in found.curve) < 0.97 * found.curve[0].held_out
    zeros_stay(parent, tmp_path / "out", family, found)
    losses = {}
    for folder in (parent, tmp_path / "out"):
        codes = made(folder, family, tmp_path / f"{folder.name}-{bits}", single("quantize", bits, **groups), dense)
        assert codes.already_zero == found.zeros
        losses[folder.name] = held_out_loss(tmp_path / f"{folder.name}-{bits}", family)
    assert losses["pruned"] == pytest.approx(found.curve[0].held_out, rel=1e-5)
    assert losses["out"] == pytest.approx(min(point.held_out for point in found.curve), rel=1e-5)
    old, new = open_checkpoint(parent), open_checkpoint(tmp_path / f"out-{bits}")
    for name, part in parts(old, family).items():
        assert not part.prunable or not new.load(name)[old.load(name) == 0].any(), name


def test_experts_in_one_tensor_are_refused(tmp_path: Path) -> None:
    dense, family = written("gpt_oss", tmp_path / "dense")
    with pytest.raises(UnsupportedError, match="experts"):
        made(dense, family, tmp_path / "out", step("finetune", qat="int4"), dense)
    assert not (tmp_path / "out").exists()
