"""Learned gates: the distribution as published, the sparsity driven to its target, and the smaller model that comes of it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.manifest.schema import Manifest
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.axes import shape_of
from sparsebench.plan.preflight import rehearsal
from sparsebench.steps import cut_model
from sparsebench.steps.recover.reading import TrainingText
from sparsebench.steps.registry import single
from sparsebench.steps.shrink import gates
from sparsebench.steps.shrink.gates import GatePlan, GatePruning
from tests.models.replaying import written
from tests.steps.recover.making import made, training_text

SETTINGS = {"tokens": 6000, "batch": 4, "rate": 3e-3, "held_out": 0.2, "evaluations": 4, "parameters": 0.6}


def gated(dense: Path, family: Any, folder: Path, settings: Any) -> Any:
    """What came of a short run."""
    return made(dense, family, folder, single("shrink", "gates", **SETTINGS | settings), dense)


def begun(folder: Path, family: Any, model: Any, **settings: Any) -> GatePruning:
    """The gates of a model, before any step of a training of 100."""
    step = single("shrink", "gates", **settings)
    weights: Any = SimpleNamespace(model=model, leaves=[*model.parameters()])
    return GatePlan(shape_of(Checkpoint(folder), family), step, 0).begin(step.settings, weights, None, 100)


def test_gates_are_hard_concrete() -> None:
    """Louizos et al. 1712.01312, equations 10 to 13, in numpy; and how often a drawn gate is open."""
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    uniform = (np.arange(200_000) + 0.5) / 200_000
    for alpha in (-3.0, -0.5, 0.0, 1.0, 2.4):
        s = 1 / (1 + np.exp(-(np.log(uniform) - np.log(1 - uniform) + alpha) / beta))
        expected = np.clip(s * (zeta - gamma) + gamma, 0, 1)
        log_alphas = torch.full((len(uniform),), alpha, dtype=torch.float64)
        found = gates.drawn_gates(log_alphas, torch.from_numpy(uniform))
        assert np.allclose(found.numpy(), expected, atol=1e-12)
        is_open = 1 / (1 + np.exp(-(alpha - beta * np.log(-gamma / zeta))))
        assert float(gates.open_probability(log_alphas)[0]) == pytest.approx(is_open, abs=1e-12)
        assert float((found != 0).double().mean()) == pytest.approx(is_open, abs=1e-4)
        mean = np.clip(1 / (1 + np.exp(-alpha)) * (zeta - gamma) + gamma, 0, 1)
        assert float(gates.mean_gates(log_alphas)[0]) == pytest.approx(mean, abs=1e-12)
    assert float(gates.mean_gates(torch.tensor(gates.START))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "gpt2", "phi3"])
def test_open_gates_change_nothing_and_closed_ones_remove(kind: str, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "dense")
    given = TrainingText(family, training_text(family, 4).batch).inputs(range(4))

    def said(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found = model(**given)
        return found.logits if hasattr(found, "logits") else found.last_hidden_state

    model = load_model(folder, family, "float32")
    before = said(model)
    gating = begun(folder, family, model, keep=0.5)
    assert torch.allclose(said(model), before, atol=1e-5)
    gating.before_gradients(0)
    assert not torch.allclose(said(model), before, atol=1e-2)  # drawn
    gating.log_alphas.data.copy_(torch.randn(len(gating.log_alphas), generator=torch.Generator().manual_seed(2)))
    with gating.as_written(100) as settled:
        closed = said(model)
    assert settled and not torch.allclose(closed, before, atol=1e-2)
    smaller = gating.plan.smaller(gating.kept())
    cut_model.write_smaller(smaller, family, tmp_path / "smaller", {})
    assert torch.allclose(said(load_model(tmp_path / "smaller", family, "float32")), closed, atol=1e-5)


@pytest.mark.parametrize("uneven", [False, True])
def test_a_step_is_that_of_the_lagrangian(uneven: bool, tmp_path: Path) -> None:
    """Its gradients and multipliers written out in numpy, with an element's parameters counted by hand."""
    folder, family = written("llama", tmp_path / "dense")
    gating = begun(folder, family, load_model(folder, family), parameters=0.6, uneven=uneven)
    gating.log_alphas.data.copy_(torch.randn(len(gating.log_alphas), generator=torch.Generator().manual_seed(2)))
    # 32 wide, heads of 8, two heads to a group: rows of q, k and v with columns of o; of gate and up with a column of down.
    cost = {"heads": 32 * (16 + 8 + 8 + 16), "neurons": 3 * 32}
    costs = np.concatenate([np.full(axis.units, cost[axis.kind]) for axis in gating.plan.remaining]).astype(float)
    places = np.concatenate([np.full(axis.units, number) for number, axis in enumerate(gating.plan.remaining)])
    places = np.zeros_like(places) if uneven else places
    wholes = np.bincount(places, costs)
    gone = [(axis.units - left) * cost[axis.kind] for axis, left in gating.plan.remaining.items()]
    target = np.array([sum(gone)] if uneven else gone) / wholes
    log_alphas = gating.log_alphas.detach().double().numpy()
    is_open = 1 / (1 + np.exp(-(log_alphas + 2 / 3 * np.log(11))))
    excess = np.bincount(places, costs * (1 - is_open)) / wholes - target * 0.4  # the tenth of the 25 steps of growing
    gating.before_gradients(9)
    gating.before_update(9)
    by_sparsity = 0 + 2 * 10 * excess
    expected = by_sparsity[places] * costs / wholes[places] * -is_open * (1 - is_open)
    assert gating.log_alphas.grad is not None
    assert np.allclose(gating.log_alphas.grad.numpy(), expected, atol=1e-6)
    assert np.allclose(gating.multipliers.numpy(), [0.1 * excess, 10 + 0.1 * excess**2], atol=1e-6)
    assert np.allclose(
        gating.log_alphas.detach().numpy() - log_alphas, -0.2 * np.sign(expected), atol=1e-3
    )  # Adam's first step


@pytest.mark.parametrize(
    ("kind", "uneven"),
    [
        ("llama", True),
        ("bert", False),
        *(pytest.param(kind, False, marks=pytest.mark.long) for kind in ("llama", "t5")),
    ],
)
def test_the_share_that_is_asked_for_stays_and_it_is_trained(kind: str, uneven: bool, tmp_path: Path) -> None:
    dense, family = written(kind, tmp_path / "dense")
    found = gated(dense, family, tmp_path / "out", {"uneven": uneven, "tokens": 12000})
    old, new = shape_of(Checkpoint(dense), family), shape_of(Checkpoint(tmp_path / "out"), family)
    # Even widths may miss it by half a neuron in each block, uneven ones by half an element in all.
    slack = max(axis.cost(old.checkpoint.tensors) for axis in old.axes if axis.kind == "neurons" or uneven)
    slack *= 1 if uneven else len(old.axes_of("neurons"))
    assert abs(new.block_parameters - 0.6 * old.block_parameters) <= slack / 2 + old.block_parameters * 0.003
    notes = json.loads((tmp_path / "out" / "sparsebench.json").read_text())
    assert notes["shrink"] == "gates" and notes["missed"] < 0.05  # where the Lagrangian has driven the sparsity
    assert ("loads" in notes) == (uneven or kind == "bert")
    met = found.parameters / (2 if kind == "t5" else 1)  # a token of two stacks meets one of them
    assert found.trained_tokens >= 12000 and found.operations > 6 * met * found.trained_tokens
    assert "the published run read 419,430,400" in found.note and "of each block stay" in found.note
    assert found.curve[0].step == 0 and len(found.curve) == 5
    # What counts is only what comes after the gates were closed, where training made it better.
    assert f"then {min(point.held_out for point in found.curve[2:]):.4g} after" in found.note
    assert found.curve[4].held_out < found.curve[2].held_out
    trained = load_model(tmp_path / "out", family)
    assert all(bool(parameter.isfinite().all()) for parameter in trained.parameters())
    norms = [name for name in old.checkpoint.tensors if "norm" in name.lower() and name.endswith("weight")]
    assert any(not torch.equal(old.checkpoint.load(name), new.checkpoint.load(name)) for name in norms)


def test_a_share_that_cannot_be_is_refused(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    for share, words in ((0.3, "heads are"), (0.99, "would go")):
        with pytest.raises(UnsupportedError, match=words):
            gated(dense, family, tmp_path / "out", {"of": "heads", "parameters": share})
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_leaves_out_what_reads_a_text_and_nothing_else() -> None:
    """Random weights come without a tokenizer."""
    model = {"name": "m", "source": "path:m", "family": "decoder", "architecture": {"model_type": "llama"}}
    reading = [
        {"shrink": "gates", "parameters": 0.8},
        {"prune": "gradual", "sparsity": 0.5},
        {"trim": "list", "file": "t"},
    ]
    variants = [*reading, {"shrink": "l2", "keep": 0.5}, {"prune": "magnitude", "sparsity": 0.5}]
    manifest = Manifest.model_validate({"version": 1, "models": [model], "variants": variants})
    left = rehearsal(manifest, full=True).variants
    assert [next(iter(chain[0].items())) for chain in left] == [("shrink", "l2"), ("prune", "magnitude")]
