"""Weights without skill: the model's own names, shapes and precision, and nothing that it has learned."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.steps.contract import Step, StepReport
from sparsebench.steps.registry import single
from tests.making import make


def made(parent: Path, family: str, folder: Path, *steps: Step) -> list[tuple[Path, StepReport]]:
    targets = {step: folder / str(number) for number, step in enumerate(steps)}
    reports = make(parent, family, targets)
    assert all(isinstance(report, StepReport) for report in reports.values())
    return [(targets[step], report) for step, report in reports.items()]


@pytest.mark.parametrize(
    ("model", "family"), [("tiny_llama", "decoder"), ("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")]
)
def test_floors_are_models_of_the_same_shapes_that_have_learned_nothing(
    model: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    parent: Path = request.getfixturevalue(model)
    (parent / "tokenizer_config.json").touch()
    steps = [single("floor", "zero-weights"), *(single("floor", "random-weights", seed=seed) for seed in (0, 1))]
    (zeros, emptied), (first, drawn), (second, _) = made(parent, family, tmp_path, *steps)
    dense = Checkpoint(parent)
    for folder in (zeros, first, second):
        own = Checkpoint(folder)
        assert {n: (i.shape, i.dtype) for n, i in own.tensors.items()} == {
            n: (i.shape, i.dtype) for n, i in dense.tensors.items()
        }
        assert (folder / "tokenizer_config.json").is_file()
        load_model(folder, family)
    assert emptied.achieved_all == 1 and drawn.achieved_all < 0.2
    assert emptied.parameters == emptied.total_zeros == drawn.parameters
    one, other, true = (Checkpoint(folder) for folder in (first, second, parent))
    name = max(true.tensors, key=lambda name: true.tensors[name].numel)
    assert not torch.equal(one.load(name), other.load(name)) and not torch.equal(one.load(name), true.load(name))
    with pytest.raises(UnsupportedError, match="no weights"):
        made(parent, family, tmp_path / "none", single("floor", "heuristic"))
    again = made(parent, family, tmp_path / "again", steps[1])[0][0]
    assert torch.equal(Checkpoint(again).load(name), one.load(name))


def test_a_quantized_model_of_zeros_keeps_its_shapes(tiny_llama: Path, tmp_path: Path) -> None:
    make(tiny_llama, "decoder", {single("quantize", "int4"): tmp_path / "int4"})
    ((zeros, report),) = made(tmp_path / "int4", "decoder", tmp_path / "floors", single("floor", "zero-weights"))
    assert report.achieved_all == 1 and report.parameters > 0
    assert not any(bool(tensor.any()) for tensor in load_model(zeros, "decoder").parameters())


def test_random_weights_have_the_precision_of_tensors_where_the_config_states_none(
    tiny_llama: Path, tmp_path: Path
) -> None:
    parent = shutil.copytree(tiny_llama, tmp_path / "parent")
    config = json.loads((parent / "config.json").read_text())
    del config["dtype"]
    (parent / "config.json").write_text(json.dumps(config))
    ((drawn, _),) = made(parent, "decoder", tmp_path / "floors", single("floor", "random-weights"))
    assert {info.dtype for info in Checkpoint(drawn).tensors.values()} == {"BF16"}
