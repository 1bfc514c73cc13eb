"""What can go together: with the weights of an axis's element at zero, the model without it says the same."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.architectures import ARCHITECTURES
from sparsebench.models.shape.axes import Axis, shape_of
from sparsebench.steps.cut_model import SmallerModel, write_smaller
from sparsebench.steps.shrink.choosing import alignment, changed_config
from tests.models.replaying import batch, rewritten, written
from tests.models.test_experts import stored

USUAL = (
    "bart bert deberta-v2 deepseek_v3 distilbert falcon gpt2 gpt_neo gpt_neox gpt_oss llama llama4_text longt5 mixtral "
    "modernbert mpnet nomic_bert opt phi3 qwen2_moe qwen3 t5:gated umt5"
).split()
"""Every layout once; the others are looked at in the long tests."""
SHAPES = [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.long)
    for name in sorted({*ARCHITECTURES, "deberta:relative", "deberta-v2:unshared", "t5:gated"})
    if name.partition(":")[0] in MODEL_TYPES
]


def random_everywhere(folder: Path) -> None:
    """Biases and tables that are zero in a new model would hide what is cut wrongly."""
    drawn = torch.Generator().manual_seed(3)

    def add_noise(tensors: dict[str, Any]) -> None:
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=drawn))

    rewritten(folder, add_noise)


def outputs(folder: Path, family: Any) -> torch.Tensor:
    """What stock transformers makes of some tokens, in float64: what is left is no rounding."""
    given = batch(family, samples=3, padded=False)
    words = {"input_ids": given.input_ids, "attention_mask": given.attention_mask.long()}
    if given.decoder_input_ids is not None and given.decoder_attention_mask is not None:
        words |= {"decoder_input_ids": given.decoder_input_ids}
        words |= {"decoder_attention_mask": given.decoder_attention_mask.long()}
    # XGLM fills its mask with a number that only float32 has.
    precise = "float32" if Checkpoint(folder).config["model_type"] == "xglm" else "float64"
    model = load_model(folder, family, precise)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # torch's grouped product knows no float64
    with torch.no_grad():
        found: torch.Tensor = (model.base_model if family != "encoder-decoder" else model)(**words)[0]
    return found


def with_zeros(folder: Path, names: dict[str, torch.Tensor], out: Path) -> Path:
    """The same model with some tensors replaced."""
    return rewritten(shutil.copytree(folder, out), lambda tensors: tensors.update(names))


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_zero_can_go(kind: str, tmp_path: Path) -> None:
    what_is_zero_can_go(kind, *written(kind, tmp_path / "model"))


def what_is_zero_can_go(kind: str, folder: Path, family: Any) -> None:
    """Compare a model without elements whose weights are zero with the one that has them."""
    random_everywhere(folder)
    found = shape_of(Checkpoint(folder), family)
    how = ARCHITECTURES[kind.partition(":")[0]]
    axes = [axis for axis in found.axes if axis.kind != "experts"]
    assert {axis.kind for axis in axes} == {*["neurons"] * bool(how.neurons), *["heads"] * bool(how.heads)}
    gone: dict[Axis, set[int]] = {}
    for place, axis in enumerate(axes):
        # Other elements in every block and expert, but as many in all.
        lost = axis.width_factor * (alignment(axes) if axis.kind == "neurons" else 1)
        gone[axis] = {(place + more) % axis.units for more in range(lost)}
    smaller = cut_as_zeros_say(folder, family, gone)
    if axes:
        count = sum(tensor.numel() for tensor in load_model(smaller, family).parameters())
        whole = sum(tensor.numel() for tensor in load_model(folder, family).parameters())
        tensors = found.checkpoint.tensors
        assert whole - count == sum(len(units) * axis.cost(tensors) for axis, units in gone.items())


def cut_as_zeros_say(folder: Path, family: Any, gone: Mapping[Axis, set[int]]) -> Path:
    """The model without some elements, which says what the whole one (`zeros` beside it) says with zeros in their place."""
    found = shape_of(Checkpoint(folder), family)
    kept = {axis: [unit for unit in range(axis.units) if unit not in units] for axis, units in gone.items()}
    zeroed: dict[str, torch.Tensor] = {}
    for axis, units in gone.items():
        marks = torch.zeros(axis.units, dtype=torch.bool)
        marks[[*units]] = True
        for cut in axis.cuts:
            tensor, dim = cut.part_of(zeroed.setdefault(cut.tensor, Checkpoint(folder).load(cut.tensor)))
            tensor[(slice(None),) * dim + (cut.marks(marks, tensor.shape[dim]),)] = 0
    smaller, zeros = folder.with_name("smaller"), with_zeros(folder, zeroed, folder.with_name("zeros"))
    write_smaller(SmallerModel(found, kept, config=changed_config(found, kept)), family, smaller, {})
    before, after = outputs(zeros, family), outputs(smaller, family)
    assert float((before - after).abs().max()) <= 1e-6 * max(1.0, float(before.abs().max()))
    assert not gone or float((before - outputs(folder, family)).abs().max()) > 1e-4, "what goes must matter"
    return smaller


@pytest.mark.parametrize("form", ["fused", "published"])
def test_experts_that_the_config_does_not_count_are_refused(form: str, tmp_path: Path) -> None:
    model = Checkpoint(stored("mixtral", form, tmp_path))
    model.config["num_local_experts"] = 10**12
    with pytest.raises(ModelError, match="1000000000000"):
        shape_of(model, "decoder")


def test_what_does_not_fit_the_config_or_is_not_there_is_refused(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    model = Checkpoint(folder)
    model.config["head_dim"] = 4
    with pytest.raises(ModelError, match="q_proj"):
        shape_of(model, family)
    model = Checkpoint(folder)
    del model.tensors["model.layers.1.self_attn.o_proj.weight"]
    with pytest.raises(ModelError, match="block 1: no tensor of kind o"):
        shape_of(model, family)
