"""A row says whether the machine gives the same outputs again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench import sources
from sparsebench.benchmarks import ScoredModel, ScoreResult, TaskSpec, score
from sparsebench.benchmarks.scorers import repeatability
from sparsebench.models.modules.load import load_model

MODELS = [("tiny_llama", "decoder"), ("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")]


def test_what_differs_is_told_by_how_much(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, "decoder", "float32")
    added = iter((0.0, 0.25))
    model.get_output_embeddings().register_forward_hook(lambda *given: given[-1] + next(added))
    assert repeatability(model) == "no: the same batch twice differs by up to 2.5e-01"


def test_nan_is_the_same_as_nan(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, "decoder", "float32")
    model.get_output_embeddings().register_forward_hook(lambda *given: given[-1] * float("nan"))
    assert repeatability(model) == "to the bit"


@pytest.mark.parametrize(
    ("model", "family", "task"), [(*MODELS[0], "piqa"), (*MODELS[1], "mrpc_pair"), (*MODELS[2], "piqa")]
)
def test_every_row_says_whether_it_repeats(
    model: str, family: Any, task: str, documents: object, request: pytest.FixtureRequest
) -> None:
    found: list[ScoreResult] = []
    folder: Path = request.getfixturevalue(model)
    score(ScoredModel(folder, family), [TaskSpec(task, limit=10)], sources.Cache(), lambda _, got: found.append(got))
    (result,) = found
    assert result.protocol["repeats"] == "to the bit"
    assert result.protocol["threads"] == torch.get_num_threads()
