"""Calibrated sweeps on whole checkpoints: every family, every method; sharing a pass changes no number; and allocations."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Step, StepReport
from sparsebench.steps.prune.blockwise import count_outliers, owl_sparsities
from sparsebench.steps.prune.contract import Layer, Quota, Solution
from sparsebench.steps.prune.methods import alps, sparsegpt
from sparsebench.steps.registry import single
from tests.making import make, prune_step
from tests.models.replaying import batch, rewritten
from tests.steps.prune.methods.synthetic import activations, layer_of, weights_of

FAMILIES: list[Any] = [("tiny_llama", "decoder"), ("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")]
GRANULARITY = {"wanda": "row", "ria": "layer", "sparsegpt": "layer", "alps": "layer"}
SOLVERS = ("sparsegpt", "alps")


def calibrated(family: Family) -> Calibrated:
    """Random tokens; encoders and encoder-decoders get padding."""
    given = batch(family, 6, padded=family != "decoder")
    notes, settings_used = ("2 empty texts left out",), {"source": "path:x", "samples": 6}
    return Calibrated(given, "ids", "text", int(given.attention_mask.sum()), notes, settings_used)


def swept(
    dense: Path, family: Family, out: Path, targets: list[Step], propagate: str = "pruned"
) -> dict[Step, StepReport]:
    steps = [replace(step, settings=step.settings.model_copy(update={"propagate": propagate})) for step in targets]
    folders = {step: out / str(place) for place, step in enumerate(steps)}
    results = make(dense, family, folders, calibrated(family), seed=3)
    return {target: results[step] for target, step in zip(targets, steps, strict=True)}


def same_weights(one: Path, other: Path) -> bool:
    left, right = Checkpoint(one), Checkpoint(other)
    return all(torch.equal(tensor, right.load(info.name)) for info, tensor in left.items())


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize(("model", "family"), FAMILIES)
def test_every_method_removes_its_share_and_leaves_the_rest(
    model: str, family: Family, propagate: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dense = request.getfixturevalue(model)
    targets = [prune_step(method, 0.7, scope) for method, scope in GRANULARITY.items()]
    results = swept(dense, family, tmp_path, targets, propagate)
    before, places = Checkpoint(dense), parts(Checkpoint(dense), family)
    for place, target in enumerate(targets):
        after = Checkpoint(tmp_path / str(place))
        rows = sum(info.shape[0] for name, info in before.tensors.items() if places[name].prunable)
        # Wanda rounds once a row, SparseGPT once a block of columns, the others once a matrix.
        slack = rows / 2 if target.name == "wanda" else len(places)
        assert abs(results[target].zeros - target.settings.sparsity * results[target].prunable) <= slack
        assert results[target].calibration_sha256 == "ids"
        told = json.loads((tmp_path / str(place) / "sparsebench.json").read_text())
        assert told["calibration"] == {"source": "path:x", "samples": 6, "notes": ["2 empty texts left out"]}
        assert (told["calibration_text_sha256"], told["propagate"], told["dtype"]) == ("text", propagate, "auto")
        for info, tensor in after.items():
            old = before.load(info.name)
            if not places[info.name].prunable:
                assert torch.equal(tensor, old), info.name
            elif target.name in ("wanda", "ria"):
                assert torch.equal(tensor[tensor != 0], old[tensor != 0])
            else:
                assert not torch.equal(tensor[tensor != 0], old[tensor != 0]), "no weight was updated"


@pytest.mark.parametrize(
    ("model", "family", "propagate"), [(*FAMILIES[0], "pruned"), (*FAMILIES[0], "dense"), (*FAMILIES[2], "pruned")]
)
def test_a_sweep_gives_what_each_version_alone_would(
    model: str, family: Family, propagate: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dense = request.getfixturevalue(model)
    targets = [prune_step("wanda", 0.5, "row"), prune_step("sparsegpt", 0.5, "layer"), prune_step("wanda", 0.9, "row")]
    swept(dense, family, tmp_path / "all", targets, propagate)
    for place, target in enumerate(targets):
        swept(dense, family, tmp_path / f"alone{place}", [target], propagate)
        assert same_weights(tmp_path / "all" / str(place), tmp_path / f"alone{place}" / "0"), target


def test_pruned_predecessors_matter_only_where_asked(tiny_llama: Path, tmp_path: Path) -> None:
    for propagate in ("pruned", "dense"):
        swept(tiny_llama, "decoder", tmp_path / propagate, [prune_step("wanda", 0.7, "row")], propagate)
    first, last = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    pruned, shared = Checkpoint(tmp_path / "pruned" / "0"), Checkpoint(tmp_path / "dense" / "0")
    assert torch.equal(pruned.load(first), shared.load(first))
    assert not torch.equal(pruned.load(last), shared.load(last))


def test_wanda_is_what_the_paper_says_behind_its_own_pruned_layers(tiny_llama: Path, tmp_path: Path) -> None:
    """Against stock transformers with hooks: gather, prune, run again, block by block."""
    from transformers import AutoModelForCausalLM

    swept(tiny_llama, "decoder", tmp_path, [prune_step("wanda", 0.5, "row")])
    ids = calibrated("decoder").batch.input_ids
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for block in model.model.layers:
        linears = {name: part for name, part in block.named_modules() if isinstance(part, torch.nn.Linear)}
        read: dict[torch.nn.Module, torch.Tensor] = {}

        def remember(module: torch.nn.Module, args: tuple[torch.Tensor], _: object, into: dict = read) -> None:
            into[module] = args[0]

        hooks = [part.register_forward_hook(remember) for part in linears.values()]
        with torch.no_grad():
            model(ids)
        for hook in hooks:
            hook.remove()
        for part in linears.values():
            norms = read[part].reshape(-1, part.in_features).float().norm(dim=0)
            scores = part.weight.detach().float().abs() * norms
            order = scores.argsort(dim=1, stable=True)[:, : round(part.in_features * 0.5)]
            part.weight.data.scatter_(1, order, 0.0)
    found = Checkpoint(tmp_path / "0")
    for name, wanted in model.state_dict().items():
        if name in found.tensors:
            assert torch.equal(found.load(name) == 0, wanted == 0), name


def test_owl_moves_sparsity_between_blocks_and_keeps_the_mean(tiny_llama: Path, tmp_path: Path) -> None:
    target = prune_step("wanda", 0.7, "row", allocation="owl")
    (result,) = swept(tiny_llama, "decoder", tmp_path, [target]).values()
    shares = {}
    for layer in {tensor.layer for tensor in result.tensors}:
        own = [tensor for tensor in result.tensors if tensor.layer == layer]
        shares[layer] = sum(tensor.zeros for tensor in own) / sum(tensor.count for tensor in own)
    assert max(shares.values()) - min(shares.values()) > 0.05
    assert result.achieved == pytest.approx(0.7, abs=0.02)


def test_without_text_a_calibrated_method_is_refused_and_nothing_is_left(tiny_llama: Path, tmp_path: Path) -> None:
    step = single("prune", "wanda", sparsity=0.5)
    with pytest.raises(ModelError, match="wanda needs calibration text"):
        make(tiny_llama, "decoder", {step: tmp_path / "out"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "place", "name"),
    [
        *((method, 0, "model.layers.1.mlp.up_proj.weight") for method in (*GRANULARITY, "magnitude", "random")),
        ("wanda", 0, "model.layers.0.input_layernorm.weight"),
        ("sparsegpt", 0, "model.embed_tokens.weight"),
        ("wanda", 2, "encoder.final_layer_norm.weight"),
    ],
)
def test_nan_weights_are_named_and_no_folder_is_left(
    method: str, place: int, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Magnitude and random read only what they prune; what an encoder gives is not laid to the decoder."""
    (model, family), out = FAMILIES[place], tmp_path / "out"
    folder = shutil.copytree(request.getfixturevalue(model), tmp_path / "broken")
    rewritten(folder, lambda tensors: tensors[name].view(-1)[::3].fill_(torch.nan))
    out.mkdir()
    with pytest.raises(ModelError, match=re.escape(f"{name}: NaN")):
        swept(folder, family, out, [prune_step(method, 0.5, GRANULARITY.get(method, "layer"))])
    assert not list(out.iterdir())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x4"])
def test_kept_zeros_stay(pattern: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the weights are zero in no order. Solvers give some of them a value where nobody forbids it."""
    # In narrow panels: what is removed in one changes the zeros in the next.
    monkeypatch.setattr(sparsegpt, "WIDTH", 32)
    make(tiny_bert, "encoder", {prune_step("random", 0.5, "layer"): tmp_path / "first"}, seed=3)
    before = Checkpoint(tmp_path / "first")
    targets = [
        prune_step(method, 0.5 if pattern == "2:4" else 0.6, scope, pattern, keep_zeros=keep)
        for method, scope in GRANULARITY.items()
        for keep in ((True, False) if method in SOLVERS else (True,))
    ]
    results = swept(tmp_path / "first", "encoder", tmp_path / "second", targets, "dense")
    prunable = [name for name, part in parts(before, "encoder").items() if part.prunable]
    for place, target in enumerate(targets):
        after = Checkpoint(tmp_path / "second" / str(place))
        revived = sum(int(after.load(name)[before.load(name) == 0].count_nonzero()) for name in prunable)
        found = results[target]
        if target.settings.keep_zeros:
            assert revived == 0
            assert found.already_zero == sum(int((before.load(name) == 0).sum()) for name in prunable)
            if pattern == "unstructured":
                live = found.prunable - found.already_zero
                # Wanda rounds once a row, SparseGPT once a block of columns, the others once a matrix.
                slack = sum(before.tensors[name].shape[0] for name in prunable) / 2 if target.name == "wanda" else 50
                assert abs(found.zeros - found.already_zero - 0.6 * live) <= slack
            elif pattern == "2:4":
                groups = [(after.load(name).reshape(-1, 4) != 0).sum(1) for name in prunable]
                assert max(int(group.max()) for group in groups) == 2
        else:
            assert revived > 0


def test_a_share_of_outliers_counts_what_is_left_where_zeros_are_kept(tiny_llama: Path, tmp_path: Path) -> None:
    make(tiny_llama, "decoder", {prune_step("magnitude", 0.5, "global"): tmp_path / "first"})
    target = prune_step("magnitude", 0.5, "layer", allocation="owl", keep_zeros=True)
    (found,) = swept(tmp_path / "first", "decoder", tmp_path / "second", [target]).values()
    assert found.zeros / found.prunable == pytest.approx(0.75, abs=1e-3)


def test_a_solver_that_revives_zeros_fails(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin's solver need not have heard of the setting."""
    make(tiny_bert, "encoder", {prune_step("random", 0.5, "layer"): tmp_path / "first"}, seed=3)
    monkeypatch.setattr(
        alps, "solve", lambda layers, quotas: [[Solution(layer.weights + 1) for _ in quotas] for layer in layers]
    )
    with pytest.raises(UnsupportedError, match="weight"):
        swept(tmp_path / "first", "encoder", tmp_path / "out", [prune_step("alps", 0.5, "layer", keep_zeros=True)])
    assert not (tmp_path / "out" / "0").exists()


@pytest.mark.parametrize(("model", "family"), [FAMILIES[0], FAMILIES[2]])
def test_a_version_whose_activations_break_fails_alone(
    model: str, family: Family, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, whose states are those that a decoder would begin with."""

    def exploding(layers: list[Layer], quotas: list[Quota]) -> list[list[Solution]]:
        factors = [1e30 if quota.sparsity == 0.9 else 0.5 for quota in quotas]
        return [[Solution(layer.weights * factor) for factor in factors] for layer in layers]

    monkeypatch.setattr(alps, "solve", exploding)
    dense = request.getfixturevalue(model)
    breaking, whole = (prune_step("alps", share, "layer") for share in (0.9, 0.5))
    found: dict[Step, Any] = swept(dense, family, tmp_path / "both", [breaking, whole])
    assert isinstance(found[breaking], ModelError) and "block 0: what it returns is NaN" in str(found[breaking])
    assert isinstance(found[whole], StepReport) and not (tmp_path / "both" / "0").exists()
    swept(dense, family, tmp_path / "alone", [whole])
    assert same_weights(tmp_path / "both" / "1", tmp_path / "alone" / "0")


blocks = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(blocks, st.floats(0, 1), st.floats(0, 2))
@example([(0.0, 1)] * 10 + [(1.0, 33636355)], 1e-05, 1.0)
def test_owl_keeps_whole_bounds_and_order(drawn: list[tuple[float, int]], sparsity: float, spread: float) -> None:
    shares, sizes = [share for share, _ in drawn], [size for _, size in drawn]
    found = owl_sparsities(shares, sizes, sparsity, spread)
    assert all(0 <= value <= 1 for value in found)
    whole = sum(value * size for value, size in zip(found, sizes, strict=True))
    # As near as doubles come: a small sparsity is what is left of numbers as large as the spread.
    assert whole == pytest.approx(sparsity * sum(sizes), rel=1e-12, abs=1e-15 * (1 + 2 * spread) * sum(sizes))
    ordered = sorted(zip(shares, found, strict=True))
    assert all(later[1] <= earlier[1] + 1e-15 for earlier, later in pairwise(ordered))
    assert max(found) - min(found) <= 2 * spread + 1e-12


def test_owl_is_the_published_rule_where_blocks_are_alike() -> None:
    shares = [0.02, 0.05, 0.01, 0.03]
    moved = [(share - 0.01) / 0.04 * 0.16 for share in shares]
    expected = [0.7 + sum(moved) / 4 - value for value in moved]
    assert owl_sparsities(shares, [10] * 4, 0.7, 0.08) == pytest.approx(expected, abs=1e-14)


def test_outliers_are_counted_over_the_whole_block() -> None:
    read = activations(48, 300)
    layers = [layer_of(weights_of(20, 48) ** 3, read), layer_of(weights_of(9, 48, 1) / 4, read)]
    scores = torch.cat([(layer.weights.abs() * read.norm(dim=0).float()).flatten() for layer in layers])
    outliers = count_outliers(layers, [3, 5])
    assert outliers == {limit: int((scores > limit * scores.mean()).sum()) for limit in (3, 5)}
    assert outliers[3] > outliers[5] > 0
