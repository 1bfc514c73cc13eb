"""Whole neurons and heads as zeros: those that `shrink` cuts out, and with the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_core import PydanticCustomError

from sparsebench.errors import UnsupportedError
from sparsebench.models.axes import shape
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.steps.contract import Context, Evidence
from sparsebench.steps.registry import kinds, label, single
from sparsebench.steps.shrink.whole import WholeModel
from tests.models.replaying import written
from tests.steps.shrink.making import shrunk, text
from tests.steps.trim.tiny import step_of


def said(folder: Path, family: Any) -> torch.Tensor:
    model = WholeModel.load(folder, family, text(family).batch, "auto")
    model.model.double()
    with torch.no_grad():
        found: torch.Tensor = model.run(slice(0, 1))
    return found


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("pattern", ["neurons", "heads"])
@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "gpt2", "mixtral"])
def test_zeros_say_what_the_smaller_shape_says(kind: str, pattern: str, norm: int, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    out = tmp_path / "zeros"
    step_of("prune", "magnitude", folder, out, family, pattern=pattern, sparsity=0.5, norm=norm)
    axes = shape(Checkpoint(folder), family).of(pattern)  # type: ignore[arg-type]
    count = 2 if pattern == "heads" else axes[0].units // 2
    smaller, result = shrunk(folder, family, tmp_path / "smaller", f"l{norm}", **{pattern: count}, compensation="none")
    assert isinstance(result, Evidence), result
    assert torch.allclose(said(out, family), said(smaller, family), atol=1e-6)
    assert not torch.allclose(said(out, family), said(folder, family), atol=1e-3)
    found, before, after = shape(Checkpoint(folder), family), Checkpoint(folder), Checkpoint(out)
    for axis in found.axes:
        gone = []
        for cut in axis.cuts:
            (old, dim), (new, _) = cut.of(before.load(cut.tensor)), cut.of(after.load(cut.tensor))
            own = new.movedim(dim, 0)[cut.offset : cut.offset + axis.units * cut.size].reshape(axis.units, -1)
            assert bool(((new == old) | (new == 0)).all())
            gone.append((own == 0).all(1))
        assert int(torch.stack(gone).all(0).sum()) == (axis.units // 2 if axis.kind == pattern else 0)


def test_random_ones_are_drawn_by_the_seed_and_both_patterns_are_made_in_one_pass(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    steps = {
        single("prune", "random", pattern=pattern, sparsity=0.25): tmp_path / pattern
        for pattern in ("neurons", "heads", "rows")
    }
    found: dict[Any, Any] = {}
    kinds()["prune"].load()(folder, steps, Context(family, 1), found.__setitem__)
    assert all(isinstance(result, Evidence) for result in found.values()), found
    notes = {step.settings["pattern"]: result.note for step, result in found.items()}
    assert "12 of 48 neurons" in notes["neurons"] and "0 of 2 groups of heads" in notes["heads"]
    step_of("prune", "random", folder, tmp_path / "other", family, pattern="neurons", sparsity=0.25)
    name = "model.layers.0.mlp.down_proj.weight"
    one, other = (Checkpoint(tmp_path / part).load(name) == 0 for part in ("neurons", "other"))
    assert one.all(0).sum() == other.all(0).sum() == 12 and not torch.equal(one, other)


def test_a_type_whose_heads_cannot_go_is_refused_by_name_when_planned_and_when_made(tmp_path: Path) -> None:
    folder, family = written("olmo2", tmp_path / "model")
    step = single("prune", "magnitude", pattern="heads", sparsity=0.5)
    assert "olmo2" in kinds()["prune"].refuses(step, Checkpoint(folder).config)[0]
    neurons = single("prune", "magnitude", pattern="neurons", sparsity=0.5)
    assert not kinds()["prune"].refuses(neurons, {"model_type": "olmo2"})[0]
    assert "albert" in kinds()["prune"].refuses(step, {"model_type": "albert"})[0]
    found: dict[Any, Any] = {}
    plain = single("prune", "magnitude", sparsity=0.5)
    kinds()["prune"].load()(folder, {step: tmp_path / "a", plain: tmp_path / "b"}, Context(family), found.__setitem__)
    assert isinstance(found[step], UnsupportedError) and isinstance(found[plain], Evidence)


def test_settings_that_do_not_go_together_are_refused_and_defaults_are_filled_in() -> None:
    step = single("prune", "magnitude", pattern="neurons", sparsity=0.5)
    assert step.settings["norm"] == 2 and label(step) == "magnitude/layer neurons 50% norm=2"
    for name, given, why in (
        ("wanda", {}, "does not remove whole heads"),
        ("sparsegpt", {}, "does not remove whole heads"),
        ("magnitude", {"norm": "inf"}, "`norm: inf` beside"),
        ("magnitude", {"granularity": "row"}, "compete within their block"),
        ("magnitude", {"granularity": "global"}, "granularity: global"),
        ("magnitude", {"keep_zeros": True}, "`keep_zeros` beside"),
        ("magnitude", {"allocation": "owl"}, "`allocation` beside"),
    ):
        with pytest.raises((PydanticCustomError, ValueError), match=why):
            single("prune", name, pattern="heads", sparsity=0.5, **given)
