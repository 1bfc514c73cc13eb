"""Weights without skill: the model's own names, shapes and precision, and nothing that it has learned."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.steps.registry import single
from tests.making import make

ZEROS = single("floor", "zero-weights")
DRAWN, OTHER = (single("floor", "random-weights", seed=seed) for seed in (0, 1))


@pytest.mark.parametrize(
    ("model", "family"), [("tiny_llama", "decoder"), ("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")]
)
def test_floors_are_models_of_the_same_shapes_that_have_learned_nothing(
    model: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    parent = shutil.copytree(request.getfixturevalue(model), tmp_path / "parent")
    # Where the config states no precision, it is that of the tensors.
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"}))
    folders = {step: tmp_path / name for step, name in ((ZEROS, "zeros"), (DRAWN, "one"), (OTHER, "other"))}
    found = make(parent, family, folders)
    true = Checkpoint(parent)
    for folder in folders.values():
        own = Checkpoint(folder)
        assert {n: (i.shape, i.dtype) for n, i in own.tensors.items()} == {
            n: (i.shape, i.dtype) for n, i in true.tensors.items()
        }
        assert (folder / "tokenizer_config.json").is_file()
        load_model(folder, family)
    assert found[ZEROS].achieved_all == 1 and found[DRAWN].achieved_all < 0.2
    assert found[ZEROS].parameters == found[ZEROS].total_zeros == found[DRAWN].parameters
    make(parent, family, {DRAWN: tmp_path / "again"})
    name = max(true.tensors, key=lambda name: true.tensors[name].numel)
    one, again, other = (Checkpoint(tmp_path / folder).load(name) for folder in ("one", "again", "other"))
    assert torch.equal(one, again) and not torch.equal(one, other) and not torch.equal(one, true.load(name))
    with pytest.raises(UnsupportedError, match="no weights"):
        make(parent, family, {single("floor", "heuristic"): tmp_path / "none"})


def test_a_quantized_model_of_zeros_keeps_its_shapes(tiny_llama: Path, tmp_path: Path) -> None:
    make(tiny_llama, "decoder", {single("quantize", "int4"): tmp_path / "int4"})
    report = make(tmp_path / "int4", "decoder", {ZEROS: tmp_path / "zeros"})[ZEROS]
    assert report.achieved_all == 1 and report.parameters > 0
    assert not any(bool(tensor.any()) for tensor in load_model(tmp_path / "zeros", "decoder").parameters())
