"""Masks from a file: what they name goes, the rest stays to the bit, and what does not fit is refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparsebench.errors import ModelError, SparsebenchError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.sources.cache import sha256_of
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import StepReport
from sparsebench.steps.registry import single
from tests.making import attempt

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
TABLE = "model.embed_tokens.weight"


def drawn(dense: Path, *names: str) -> dict[str, torch.Tensor]:
    """Masks that keep about 30%."""
    generator = torch.Generator().manual_seed(0)
    checkpoint = Checkpoint(dense)
    return {name: torch.rand(checkpoint.tensors[name].shape, generator=generator) < 0.3 for name in names}


def made(dense: Path, out: Path, *files: str) -> list[StepReport | SparsebenchError]:
    """What came of each file's step, all in one pass."""
    steps = [single("prune", "mask", file=file) for file in files]
    found = attempt(dense, "decoder", {step: out / str(place) for place, step in enumerate(steps)})
    return [found[step] for step in steps]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16, torch.int64])
def test_a_one_keeps_a_zero_prunes_the_rest_stays(dtype: torch.dtype, tiny_llama: Path, tmp_path: Path) -> None:
    masks = drawn(tiny_llama, UP, DOWN, TABLE)
    # Under the weight's name, or as torch calls a mask.
    named = {UP: masks[UP], f"{DOWN}_mask": masks[DOWN], f"{TABLE}_mask": masks[TABLE]}
    save_file({name: mask.to(dtype) for name, mask in named.items()}, tmp_path / "m.safetensors")
    (found,) = made(tiny_llama, tmp_path / "out", str(tmp_path / "m.safetensors"))
    assert isinstance(found, StepReport)
    before, after = Checkpoint(tiny_llama), Checkpoint(tmp_path / "out" / "0")
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        expected = before.load(name)
        if name in masks:
            expected = expected.masked_fill(~masks[name], 0)
        assert torch.equal(after.load(name), expected), name
    gone = sum(int((~masks[name]).sum()) for name in (UP, DOWN))
    assert (found.zeros, found.already_zero) == (gone, 0)
    assert found.total_zeros == gone + int((after.load(TABLE) == 0).sum())
    prunable = sum(part.prunable for part in parts(before, "decoder").values())
    assert f"no mask for {prunable - 2} of {prunable} prunable weights" in found.note


def test_zeros_of_the_parent_stay_and_are_counted_apart(tiny_llama: Path, tmp_path: Path) -> None:
    masks = drawn(tiny_llama, UP)
    for name, mask in (("one", masks[UP]), ("other", masks[UP].flip(1))):
        save_file({UP: mask.contiguous()}, tmp_path / name)
    made(tiny_llama, tmp_path / "first", str(tmp_path / "one"))
    (found,) = made(tmp_path / "first" / "0", tmp_path / "second", str(tmp_path / "other"))
    assert isinstance(found, StepReport)
    assert found.already_zero == int((~masks[UP]).sum())
    assert found.zeros == int((~(masks[UP] & masks[UP].flip(1))).sum()) > found.already_zero


def test_of_a_tied_weight_stored_twice_one_mask_is_enough_and_two_must_agree(tiny_llama: Path, tmp_path: Path) -> None:
    before = Checkpoint(tiny_llama)
    twice = tmp_path / "twice"
    twice.mkdir()
    (twice / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    tensors = {info.name: tensor for info, tensor in before.items()}
    save_file(tensors | {"lm_head.weight": tensors[TABLE].clone()}, twice / "model.safetensors")
    mask = drawn(tiny_llama, TABLE)[TABLE]
    save_file({"lm_head.weight": mask}, tmp_path / "head")
    save_file({"lm_head.weight": mask, TABLE: mask.clone()}, tmp_path / "both")
    save_file({"lm_head.weight": mask, TABLE: ~mask}, tmp_path / "unlike")
    head, both, unlike = made(twice, tmp_path / "out", *(str(tmp_path / name) for name in ("head", "both", "unlike")))
    assert isinstance(unlike, ModelError) and "lm_head.weight" in unlike.message and TABLE in unlike.message
    for place, found in enumerate((head, both)):
        assert isinstance(found, StepReport)
        after = Checkpoint(tmp_path / "out" / str(place))
        for name in (TABLE, "lm_head.weight"):
            assert torch.equal(after.load(name), tensors[TABLE].masked_fill(~mask, 0))


WRONG = {
    "another name": ({"model.layers.0.mlp.upproj.weight": torch.ones(96, 64)}, "model.layers.0.mlp.upproj.weight"),
    "another shape": ({UP: torch.ones(64, 96)}, "(64, 96), its weight (96, 64)"),
    "another value": ({UP: torch.full((96, 64), 0.5)}, f"{UP} has the value 0.5"),
    "a number that is none": ({f"{UP}_mask": torch.full((96, 64), torch.nan)}, f"{UP}_mask has the value nan"),
    "no mask at all": ({}, "no masks"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_does_not_fit_fails_alone(wrong: str, tiny_llama: Path, tmp_path: Path) -> None:
    masks, words = WRONG[wrong]
    save_file(masks, tmp_path / "wrong")
    save_file(drawn(tiny_llama, UP), tmp_path / "right")
    refused, right = made(tiny_llama, tmp_path / "out", str(tmp_path / "wrong"), str(tmp_path / "right"))
    assert isinstance(refused, ModelError) and words in refused.message and "wrong" in refused.message
    assert isinstance(right, StepReport)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1"]


def test_a_byte_beyond_one_is_no_boolean(tiny_llama: Path, tmp_path: Path) -> None:
    """Each file has its own reason, also where none is left."""
    for name, value in (("m", 2), ("n", 3)):
        save_file({UP: torch.ones(96, 64, dtype=torch.bool)}, tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1] + bytes([value]))
    found = made(tiny_llama, tmp_path / "out", str(tmp_path / "m"), str(tmp_path / "n"))
    assert [f"has the value {value}" in str(one) for one, value in zip(found, (2, 3), strict=True)] == [True, True]
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_has_changed_since_it_was_planned_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """Its result would stand under the id of the old content."""
    path = tmp_path / "m"
    save_file(drawn(tiny_llama, UP), path)
    planned = str(Reference(str(path), sha256_of(path)))
    (found,) = made(tiny_llama, tmp_path / "out", planned)
    assert isinstance(found, StepReport)
    save_file(drawn(tiny_llama, DOWN), path)
    (found,) = made(tiny_llama, tmp_path / "again", planned)
    assert isinstance(found, ModelError) and str(path) in found.message
    # Nor is one that is no safetensors file, none at all, or a folder.
    path.write_bytes(b"\xff" * 100)
    for name in ("m", "absent", "."):
        (found,) = made(tiny_llama, tmp_path / "none", str(tmp_path / name))
        assert isinstance(found, ModelError) and str(tmp_path) in found.message
