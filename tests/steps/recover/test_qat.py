"""Quantization-aware training: the weights of the forward pass are those that ``quantize`` makes, and masks stay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.quantized import Scheme, open_checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.topology import parts
from sparsebench.steps.grid import nearest
from sparsebench.steps.recover.qat import RoundedWeight
from sparsebench.steps.recover.reading import TrainingText
from sparsebench.steps.recover.weights import MaskedParameter
from sparsebench.steps.registry import label, single
from tests.models.replaying import written
from tests.steps.recover.making import SAMPLES, made, pruned, step, training_text, zeros_stay


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


def held_out_loss(folder: Path, family: Any) -> float:
    """The loss of stock transformers' model on the samples that `step` holds out."""
    model, given_text = load_model(folder, family), TrainingText(family, training_text(family).batch)
    rows = range(SAMPLES - round(0.2 * SAMPLES), SAMPLES)
    with torch.no_grad():
        logits = model(**given_text.inputs(rows)).logits
    return float(nn.functional.cross_entropy(logits.transpose(1, 2), given_text.next_tokens(rows)))


def test_a_default_setting_leaves_records_and_labels_alone() -> None:
    for name in ("finetune", "distill"):
        assert not {"qat", "group"} & set(single("recover", name, group=32).settings.record())
        assert label(single("recover", name, qat="int8", group=32)) == f"{name} qat=int8"
        assert label(single("recover", name, qat="int4", group=32)) == f"{name} qat=int4 group=32"
    assert "match_weight" not in single("recover", "distill", qat="int4").settings.record()


def test_experts_in_one_tensor_are_refused(tmp_path: Path) -> None:
    dense, family = written("gpt_oss", tmp_path / "dense")
    with pytest.raises(UnsupportedError, match="experts"):
        made(dense, family, tmp_path / "out", step("finetune", qat="int4"), dense)
    assert not (tmp_path / "out").exists()
