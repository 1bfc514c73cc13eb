"""What torch's prune leaves in a state dict, read as the weights that it means, and written so that torch reads it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import INDEX, Checkpoint
from sparsebench.models.files.masked import write_masked
from sparsebench.models.modules.load import load_model
from sparsebench.models.prepare import prepare
from sparsebench.models.shape.topology import parts
from tests.making import make, prune_step

UP, TABLE = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"


def pruned(folder: Path, family: str) -> Any:
    """The model with half of each prunable weight under torch's masks, and of one bias."""
    model = load_model(folder, family)
    for name, part in parts(Checkpoint(folder), family).items():
        if part.prunable:
            prune.l1_unstructured(model.get_submodule(name.rpartition(".")[0]), "weight", 0.5)
    if family == "encoder":
        prune.random_unstructured(model.encoder.layer[0].output.dense, "bias", 0.5)
    return model


def effective(model: Any) -> dict[str, torch.Tensor]:
    """The weights that the masks leave."""
    state = model.state_dict()
    found = {name: tensor for name, tensor in state.items() if not name.endswith(("_orig", "_mask"))}
    for name, tensor in state.items():
        if name.endswith("_orig"):
            found[name.removesuffix("_orig")] = tensor * state[name.replace("_orig", "_mask")]
    return found


def saved(tensors: dict[str, torch.Tensor], like: Path, out: Path, form: str = "one") -> Path:
    """A folder of these tensors: in one file, in several, or pickled with what is tied."""
    out.mkdir()
    shutil.copy(like / "config.json", out)
    if form == "pickle":
        torch.save(tensors, out / "pytorch_model.bin")
        return out
    plain = {name: tensor.clone() for name, tensor in tensors.items() if name != "lm_head.weight"}
    if form == "one":
        save_file(plain, out / "model.safetensors")
        return out
    # Every mask lies in another file than its weight, and one file has nothing but masks.
    where = {name: f"model-{1 + name.endswith('_mask')}.safetensors" for name in plain}
    for file in set(where.values()):
        save_file({name: plain[name] for name in plain if where[name] == file}, out / file)
    (out / INDEX).write_text(json.dumps({"weight_map": where}))
    return out


@pytest.mark.parametrize("form", ["one", "several", "pickle"])
@pytest.mark.parametrize(("model", "family"), [("tiny_llama", "decoder"), ("tiny_bert", "encoder")])
def test_a_pruned_state_dict_is_read_as_its_product(
    model: str, family: Any, form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dense = request.getfixturevalue(model)
    theirs = pruned(dense, family)
    source = saved(theirs.state_dict(), dense, tmp_path / "source", form)
    folder = prepare(source, tmp_path / "out", family)
    checkpoint, expected = Checkpoint(folder), effective(theirs)
    expected.pop("lm_head.weight", None)  # tied, so stored once
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.load(name), tensor), name
        assert not bool(torch.signbit(checkpoint.load(name)[tensor == 0]).any())
    ours = dict(load_model(folder, family).named_parameters())
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items() if name in ours)
    assert ours.keys() <= expected.keys()
    # What is made of it says so, and tells its zeros from the others.
    (found,) = make(folder, family, {prune_step("magnitude", 0.75, "layer"): tmp_path / "made"}).values()
    masked = sum(name.endswith("_orig") for name in theirs.state_dict())
    assert f"{masked} weights with masks" in found.note
    assert found.already_zero == pytest.approx(found.prunable / 2, rel=1e-3)
    assert found.zeros == pytest.approx(0.75 * found.prunable, rel=1e-3)


def test_masked_weights_are_converted_like_others(tiny_bert: Path, tmp_path: Path) -> None:
    theirs = pruned(tiny_bert, "encoder")
    folder = prepare(
        saved(theirs.state_dict(), tiny_bert, tmp_path / "source"), tmp_path / "out", "encoder", "bfloat16"
    )
    for name, tensor in effective(theirs).items():
        assert torch.equal(Checkpoint(folder).load(name), tensor.bfloat16())


@pytest.mark.parametrize("form", ["one", "pickle"])
@pytest.mark.parametrize("part", ["weight_orig", "weight_mask", "bias_mask"])
def test_one_part_without_the_other_is_refused_by_name(part: str, form: str, tiny_bert: Path, tmp_path: Path) -> None:
    state = pruned(tiny_bert, "encoder").state_dict()
    other = {"weight_orig": "weight_mask", "weight_mask": "weight_orig", "bias_mask": "bias_orig"}[part]
    del state[f"encoder.layer.0.output.dense.{other}"]
    source = saved(state, tiny_bert, tmp_path / "source", form)
    with pytest.raises(ModelError, match=rf"encoder\.layer\.0\.output\.dense\.{part} without"):
        prepare(source, tmp_path / "out", "encoder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{UP}_mask": torch.full((96, 64), 2.0)}, "has the value 2"),
        ({f"{UP}_mask": torch.ones(64, 96)}, "(64, 96)"),
        ({UP: torch.ones(96, 64)}, "beside"),
    ],
)
def test_parts_of_no_weight_fail(change: dict[str, torch.Tensor], words: str, tiny_llama: Path, tmp_path: Path) -> None:
    source = saved(pruned(tiny_llama, "decoder").state_dict() | change, tiny_llama, tmp_path / "source")
    with pytest.raises(ModelError) as error:
        prepare(source, tmp_path / "out", "decoder")
    assert words in error.value.message and UP in error.value.message


def test_a_buffer_of_the_models_own_may_be_called_mask(tiny_bert: Path, tmp_path: Path) -> None:
    state = {info.name: tensor for info, tensor in Checkpoint(tiny_bert).items()}
    source = saved(state | {"encoder.attn_mask": torch.ones(4, 4)}, tiny_bert, tmp_path / "source")
    assert "encoder.attn_mask" in Checkpoint(prepare(source, tmp_path / "out", "encoder")).tensors


@pytest.mark.parametrize("form", ["one", "pickle"])
def test_tied_weights_are_masked_alike_or_refused(form: str, tiny_llama: Path, tmp_path: Path) -> None:
    state = {info.name: tensor for info, tensor in Checkpoint(tiny_llama).items()}
    table = state.pop(TABLE)
    mask = (torch.arange(table.numel()) % 3 > 0).view(table.shape)
    alike = {
        f"{name}{end}": part.clone() for name in (TABLE, "head") for end, part in (("_orig", table), ("_mask", mask))
    }
    alike = {name.replace("head", "lm_head.weight"): tensor for name, tensor in alike.items()}
    folder = prepare(saved(state | alike, tiny_llama, tmp_path / "source", form), tmp_path / "out", "decoder")
    assert "lm_head.weight" not in Checkpoint(folder).tensors
    assert torch.equal(Checkpoint(folder).load(TABLE), table.masked_fill(~mask, 0))
    alike["lm_head.weight_mask"] = ~mask
    for place, unlike in enumerate((alike, {f"{TABLE}_orig": table, f"{TABLE}_mask": mask, "lm_head.weight": table})):
        source = saved(state | unlike, tiny_llama, tmp_path / f"unlike{place}", "pickle")
        with pytest.raises(ModelError, match="lm_head.weight and model.embed_tokens.weight are tied"):
            prepare(source, tmp_path / f"out{place}", "decoder")


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_torch_loads_masks_and_they_read_back_to_the_bit(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    dense = Checkpoint(tiny_llama)
    names = [name for name, part in parts(dense, "decoder").items() if part.prunable]
    make(tiny_llama, "decoder", {prune_step(method, 0.6, "layer"): tmp_path / "plain"})
    folder = write_masked(tmp_path / "plain", tiny_llama, tmp_path / "masked", names)
    state = load_file(folder / "model.safetensors")
    assert {name for name in state if name.endswith("_mask")} == {f"{name}_mask" for name in names}
    model = load_model(tiny_llama, "decoder")
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        prune.custom_from_mask(module, "weight", torch.ones_like(module.weight))
    told = model.load_state_dict(state, strict=False)
    assert (told.missing_keys, told.unexpected_keys) == (["lm_head.weight"], [])
    plain = Checkpoint(tmp_path / "plain")
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        assert torch.equal(module.weight_orig, dense.load(name))
        prune.remove(module, "weight")
        assert torch.equal(module.weight, plain.load(name))
    again = Checkpoint(prepare(folder, tmp_path / "again", "decoder"))
    assert again.tensors.keys() == plain.tensors.keys()
    for name in plain.tensors:
        assert torch.equal(again.load(name).view(torch.int16), plain.load(name).view(torch.int16)), name
