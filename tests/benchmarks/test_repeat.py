"""A row says whether the machine gives the same outputs again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.benchmarks.scorers import repeatability
from sparsebench.models.modules.load import load_model
from tests.benchmarks.conftest import run


@pytest.mark.parametrize(
    ("model", "family", "task"),
    [("tiny_llama", "decoder", "piqa"), ("tiny_bert", "encoder", "mrpc_pair"), ("tiny_t5", "encoder-decoder", "piqa")],
)
def test_every_row_says_whether_it_repeats(
    model: str, family: Any, task: str, documents: object, request: pytest.FixtureRequest
) -> None:
    protocol = run(request.getfixturevalue(model), family, task, limit=10).protocol
    assert (protocol["repeats"], protocol["threads"]) == ("to the bit", torch.get_num_threads())


def test_what_differs_is_told_by_how_much(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, "decoder", "float32")
    added = iter((0.0, 0.25))
    model.get_output_embeddings().register_forward_hook(lambda *given: given[-1] + next(added))
    assert repeatability(model) == "no: the same batch twice differs by up to 2.5e-01"


def test_nan_is_the_same_as_nan(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, "decoder", "float32")
    model.get_output_embeddings().register_forward_hook(lambda *given: given[-1] * float("nan"))
    assert repeatability(model) == "to the bit"
