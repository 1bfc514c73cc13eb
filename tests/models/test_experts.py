"""Mixtures of experts, fused or stored apart: calibrated, pruned and run like the linear layers of any model."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.build import build_model
from sparsebench.models.modules.experts import is_fused
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.batch import Batch
from sparsebench.models.replay.blockwise import Replay
from sparsebench.models.replay.gather import Gatherer, PrunableLayer
from sparsebench.models.shape.topology import LINEAR_TYPES, prunable_share
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Step
from tests.making import make, prune_step
from tests.models.model_zoo import EXPERT_TYPES
from tests.models.replaying import assert_close, batch, rewritten, stock, written
from tests.sampling import a_third

APART = ("deepseek_v3", "glm4_moe", "granitemoe", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe")
"""Types whose published files have other names or forms than the model: one tensor for each layer of each expert, mostly."""
STORED = [*((kind, "fused") for kind in EXPERT_TYPES), *((kind, "published") for kind in APART)]
GRANULARITY = {
    "magnitude": "layer", "random": "row", "wanda": "row", "ria": "layer", "sparsegpt": "layer", "alps": "layer",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five samples run as two, two and one: some experts see no token in the first."""
    monkeypatch.setattr("sparsebench.models.replay.blockwise.TOKENS_AT_ONCE", 32)


def stored(model_type: str, form: str, folder: Path) -> Path:
    """The type's small model, as the model names its tensors or as they are published (transformers saves them so)."""
    fused, _ = written(model_type, folder / "fused")
    if form == "fused":
        return fused
    # A model that was loaded is saved under the names that it was loaded from; a new one as it is published.
    loaded = stock(fused, "decoder")
    new = type(loaded)(loaded.config)
    new.load_state_dict(loaded.state_dict())
    new.save_pretrained(folder / "published")
    if model_type in APART:
        assert Checkpoint(folder / "published").tensors.keys() != Checkpoint(fused).tensors.keys()
    return folder / "published"


def place(name: str) -> tuple[int, int, str]:
    """Block, expert and whether it reads what the experts read or what lies within one, of an expert's matrix by name."""
    layer, rest = re.search(r"layers\.(\d+)\.(.*)", name).groups()
    number = re.search(r"\[(\d+)\]|experts\.(\d+)\.", rest)
    assert number is not None, name
    inner = re.search(r"down_proj|w2|output_linear", rest)
    return int(layer), int(number[1] or number[2]), "out" if inner else "in"


def is_expert(name: str) -> bool:
    return name.endswith("]") or re.search(r"experts\.\d", name) is not None


class Stock:
    """Stock transformers: final states, and the rows that each expert's layers read, by place."""

    def __init__(self, folder: Path, given: Batch) -> None:
        self.model = stock(folder, "decoder")
        self.read: dict[tuple[int, int, str], Any] = {}
        kept = given.attention_mask.reshape(-1)
        for name, module in self.model.named_modules():
            if is_fused(module):
                layer = int(re.search(r"layers\.(\d+)", name)[1])
                module.register_forward_pre_hook(partial(self._look, layer=layer, kept=kept))
        with torch.no_grad():
            words = {"input_ids": given.input_ids, "attention_mask": given.attention_mask.long()}
            self.final = self.model.base_model(**words)[0]

    def _look(self, module: Any, args: Any, layer: int, kept: Any) -> None:
        for expert in range(module.gate_up_proj.shape[0]):
            if len(args) == 1:
                hidden = args[0].view(module.gate_up_proj.shape[0], -1, args[0].shape[-1])[expert]
                rows = hidden[kept & (hidden != 0).any(1)]
            else:
                rows = args[0][kept & (args[1] == expert).any(1)]
            turned = type(module).__name__ in ("GptOssExperts", "Llama4TextExperts")
            weight = module.gate_up_proj[expert].detach()
            inner = rows @ (weight if turned else weight.T)
            if hasattr(module, "gate_up_proj_bias"):
                inner = inner + module.gate_up_proj_bias[expert].detach()
            if hasattr(module, "_apply_gate"):
                inner = module._apply_gate(inner)
            else:
                gate, up = inner.chunk(2, -1)
                inner = up * module.act_fn(gate)
            self.read[layer, expert, "in"], self.read[layer, expert, "out"] = rows, inner


@pytest.mark.parametrize(("model_type", "form"), a_third(STORED))
def test_statistics_are_of_the_tokens_that_are_routed_to_an_expert(model_type: str, form: str, tmp_path: Path) -> None:
    folder, given = stored(model_type, form, tmp_path), batch("decoder")
    stock, seen = Stock(folder, given), {}
    replay = Replay(Checkpoint(folder), "decoder", given)
    replay.run(lambda block: seen.update(block.observe(0, gram=True)))
    mask = given.attention_mask
    assert_close(replay.outputs(0)[mask], stock.final[mask], "outputs")
    experts = {name for name in seen if is_expert(name)}
    assert {place(name) for name in experts} == set(stock.read)
    for name in experts:
        rows = stock.read[place(name)].double()
        assert seen[name].tokens == len(rows), name
        assert_close(seen[name].squares, (rows * rows).sum(0), name)
        assert_close(seen[name].gram, rows.T @ rows, name)
    assert len({seen[name].tokens for name in experts}) > 1, "all experts saw the same: nothing was tested"


@pytest.mark.parametrize(("model_type", "form"), a_third(STORED))
def test_a_changed_expert_is_a_changed_model(model_type: str, form: str, tmp_path: Path) -> None:
    folder, given = stored(model_type, form, tmp_path), batch("decoder")
    target = prune_step("random", 0.5, "layer")
    pruned = sweep(folder, tmp_path, [target])[target]
    after = Checkpoint(tmp_path / "random")

    names = {tensor.name for tensor in pruned.tensors}

    def changed(block: Any) -> None:
        views = {view.name: view for view in block._block.parameters.values() if view.name in names}
        block.advance(0, {name: view.cut(after.load(view.tensor)) for name, view in views.items()})

    replay = Replay(Checkpoint(folder), "decoder", given)
    replay.run(changed)
    mask = given.attention_mask
    assert_close(replay.outputs(0)[mask], Stock(tmp_path / "random", given).final[mask], "outputs")


def tokens() -> Calibrated:
    given = batch("decoder", padded=False)
    return Calibrated(given, "ids", "text", given.input_ids.numel(), (), {"source": "path:x", "samples": 5})


def sweep(folder: Path, out: Path, targets: list[Step], sub: str = "") -> dict[Step, Any]:
    return make(folder, "decoder", {target: out / sub / target.name for target in targets}, tokens(), seed=3)


@pytest.mark.parametrize(
    ("model_type", "form", "propagate"),
    [*a_third((*one, "dense") for one in STORED), ("mixtral", "published", "pruned"), ("gpt_oss", "fused", "pruned")],
)
def test_every_expert_is_pruned_and_no_router(model_type: str, form: str, propagate: str, tmp_path: Path) -> None:
    folder = stored(model_type, form, tmp_path)
    before = Checkpoint(folder)
    targets = [prune_step(name, 0.5, scope, propagate=propagate) for name, scope in GRANULARITY.items()]
    found = sweep(folder, tmp_path, targets)
    model = load_model(folder, "decoder")
    linear = [module.weight for module in model.model.layers.modules() if type(module).__name__ in LINEAR_TYPES]
    layers = [weight for weight in linear if min(weight.shape) > 1]
    experts = [module for module in model.modules() if is_fused(module)]
    fused = [tensor for module in experts for tensor in module.parameters() if tensor.ndim == 3]
    for target, result in found.items():
        assert result.prunable == sum(tensor.numel() for tensor in (*layers, *fused))
        assert result.prunable / result.parameters == pytest.approx(prunable_share(before, "decoder"))
        assert all(tensor.zeros == pytest.approx(tensor.count / 2, rel=0.02) for tensor in result.tensors), target
        _, info = type(model).from_pretrained(tmp_path / target.name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        after = Checkpoint(tmp_path / target.name)
        routers = [name for name in after.tensors if re.search(r"\.(gate|router|shared_expert_gate)\.", name)]
        assert routers and all(torch.equal(after.load(name), before.load(name)) for name in routers)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "granitemoe"])
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_within_rows_it_is_all_one_how_experts_are_stored(model_type: str, method: str, tmp_path: Path) -> None:
    target = prune_step(method, 0.5, "row")
    for form in ("fused", "published"):
        sweep(stored(model_type, form, tmp_path / form), tmp_path, [target], f"pruned-{form}")
    folders = [tmp_path / f"pruned-{form}" / method for form in ("fused", "published")]
    one, other = (load_model(folder, "decoder").state_dict() for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("propagate", ["dense", "pruned"])
def test_what_does_not_fit_is_gathered_in_runs(propagate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored("qwen3_moe", "published", tmp_path)
    target = prune_step("sparsegpt", 0.5, "layer", propagate=propagate)
    runs: list[int] = []
    observe = Gatherer.__init__
    monkeypatch.setattr(Gatherer, "__init__", lambda self, *args: (runs.append(1), observe(self, *args))[1])
    sweep(folder, tmp_path, [target], "once")
    once = len(runs)
    monkeypatch.setattr("sparsebench.models.replay.blockwise.STATISTICS", 4 * 32 * 32)
    sweep(folder, tmp_path, [target], "often")
    assert len(runs) - once > 2 * once
    one, other = (Checkpoint(tmp_path / sub / "sparsegpt") for sub in ("once", "often"))
    assert all(torch.equal(one.load(name), other.load(name)) for name in one.tensors)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude_and_told(method: str, tmp_path: Path) -> None:
    never = {"model.layers.1.mlp.router.bias": torch.tensor([0.0, 0.0, -1e4, 0.0])}
    folder = rewritten(stored("gpt_oss", "fused", tmp_path), lambda tensors: tensors.update(never))
    targets = [prune_step(name, 0.5, "row", propagate="dense") for name in (method, "magnitude")]
    found = sweep(folder, tmp_path, targets)
    note = found[targets[0]].note
    assert "2 expert matrices" in note and "layers.1.mlp.experts.down_proj[2]" in note
    assert not found[targets[1]].note
    one, other = (Checkpoint(tmp_path / target.name) for target in targets)
    for layer in ("gate_up_proj", "down_proj"):
        name = f"model.layers.1.mlp.experts.{layer}"
        same = [torch.equal(one.load(name, expert), other.load(name, expert)) for expert in range(4)]
        assert same == [False, False, True, False]
    assert "2 expert matrices" in json.loads((tmp_path / method / "sparsebench.json").read_text())["note"]


def test_an_expert_that_sees_its_first_token_late_is_counted() -> None:
    layers = [torch.nn.Linear(3, 2) for _ in range(4)]

    class Routed:
        tokens = torch.tensor([0])

    routed: Any = Routed()
    readers = {
        name: PrunableLayer(name, layer, 3, False, None, routed, same)
        for name, layer, same in zip("abcd", layers, ("0", "0", "1", "1"), strict=True)
    }
    gatherer = Gatherer(readers, gram=True)
    states = torch.arange(12.0).view(2, 2, 3)
    mask = torch.tensor([[True, False], [True, True]])
    with torch.no_grad(), gatherer.hooked():
        for late in (False, True):
            with gatherer.micro_batch(mask, None, set()):
                rows = states.view(-1, 3)
                routed.tokens = torch.tensor([0, 1, 3])
                for layer in layers[:2]:
                    layer(rows[routed.tokens])
                routed.tokens = torch.tensor([2, 1])
                for layer in layers[2:] if late else ():
                    layer(rows[routed.tokens])
    found = gatherer.result()
    assert gatherer.groups() == (("a", "b"), ("c", "d"))
    assert (found["a"].tokens, found["c"].tokens) == (4, 1)
    assert found["c"].squares.tolist() == [36.0, 49.0, 64.0]
    assert found["c"] is found["d"]


@pytest.mark.parametrize(("model_type", "form"), a_third(STORED))
def test_an_assembled_model_is_the_loaded_one(model_type: str, form: str, tmp_path: Path) -> None:
    folder = stored(model_type, form, tmp_path)
    mine, theirs = build_model(Checkpoint(folder), "decoder").state_dict(), stock(folder, "decoder").state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_experts_in_an_unknown_form_are_refused_and_not_skipped(tmp_path: Path) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "experts.gate_up_proj" in name]:
            tensors[name.replace("experts.gate_up_proj", "experts.mlp.w1")] = tensors.pop(name)

    folder = rewritten(stored("mixtral", "fused", tmp_path), rename)
    with pytest.raises(UnsupportedError, match=r"experts\.mlp\.w1: how mixtral stores its experts"):
        sweep(folder, tmp_path, [prune_step("magnitude", 0.5, "layer")])
