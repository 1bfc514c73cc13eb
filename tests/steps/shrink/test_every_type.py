"""Every model type of the zoo, cut along every axis: transformers loads it, where it can state it, and parameters are counted."""

from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES, PER_LAYER
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.architectures import ARCHITECTURES
from sparsebench.steps.registry import single
from tests.models.replaying import written
from tests.steps.shrink.making import refused, shrunk

AXES: dict[str, dict[str, Any]] = {
    "heads": {"keep": 0.5, "of": "heads"},
    "neurons": {"keep": 0.5, "of": "neurons"},
    "experts": {"keep": 0.75, "of": "experts"},
    "blocks": {"blocks": 1},
}
USUAL = ("bart", "bert", "gpt2", "llama", "mixtral", "t5")
KINDS = [
    kind if kind in USUAL else pytest.param(kind, marks=pytest.mark.long)
    for kind in sorted(ARCHITECTURES)
    if kind in MODEL_TYPES
]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_is_a_model_of_as_many_parameters_as_said(kind: str, axis: str, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    step, config = single("shrink", "random", **AXES[axis]), Checkpoint(folder).config
    if step.settings.refuses(config):
        error = refused(folder, family, tmp_path / "out", "random", **AXES[axis])
        assert isinstance(error, UnsupportedError) and error.hint
        return
    out, result = shrunk(folder, family, tmp_path / "out", "random", **AXES[axis])
    whole, smaller = load_model(folder, family), Checkpoint(out)
    if PER_LAYER in smaller.config:
        model = load_model(out, family)
    else:
        model, info = type(whole).from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"], info
    before, after = (sum(info.numel for info in found.tensors.values()) for found in (Checkpoint(folder), smaller))
    assert result.parameters == after < before
    held, left = (sum(tensor.numel() for tensor in one.state_dict().values()) for one in (whole, model))
    assert held - left == before - after, "but for tied tensors, which a file holds once or twice"
