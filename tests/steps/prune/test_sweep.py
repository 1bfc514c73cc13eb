"""The sweep on whole checkpoints: counts are exact, what is out of scope stays, and what goes is what torch's pruning takes."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from sparsebench.errors import ModelError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.steps import counting
from sparsebench.steps.contract import Context, Step, StepReport
from sparsebench.steps.prune.contract import Quota
from sparsebench.steps.prune.masks import choose
from sparsebench.steps.prune.settings import Magnitude
from sparsebench.steps.registry import kinds, single
from tests.making import make, prune_step, quantize_step

FAMILIES = [("tiny_llama", "decoder"), ("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")]
SPARSITIES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


def swept(dense: Path, family: Family, out: Path, targets: list[Step]) -> dict[Step, StepReport]:
    return make(dense, family, {target: out / str(place) for place, target in enumerate(targets)}, seed=7)


@pytest.mark.parametrize("granularity", ["global", "layer", "row"])
@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize(("model", "family"), FAMILIES)
def test_counts_are_exact_and_the_rest_is_untouched(
    model: str, family: Family, method: str, granularity: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dense = request.getfixturevalue(model)
    targets = [prune_step(method, sparsity, granularity) for sparsity in SPARSITIES]
    results = swept(dense, family, tmp_path, targets)
    before, places = Checkpoint(dense), parts(Checkpoint(dense), family)
    for place, target in enumerate(targets):
        after = Checkpoint(tmp_path / str(place))
        assert after.tensors.keys() == before.tensors.keys()
        for info, tensor in after.items():
            old, kept = before.load(info.name), tensor != 0
            if not places[info.name].prunable:
                assert torch.equal(tensor, old), info.name
                continue
            assert torch.equal(tensor[kept], old[kept])
            if granularity == "layer":
                assert int((~kept).sum()) == round(target.settings.sparsity * old.numel())
        result = results[target]
        if granularity == "global":
            assert result.zeros == round(target.settings.sparsity * result.prunable)
        assert result.zeros == sum(tensor.zeros for tensor in result.tensors)
        assert result.prunable == sum(tensor.count for tensor in result.tensors)


def test_gpt2_rows_are_outputs(tmp_path: Path) -> None:
    """Conv1D stores (in, out): a row-wise mask must count along the stored columns."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)).save_pretrained(tmp_path / "gpt2")
    swept(tmp_path / "gpt2", "decoder", tmp_path / "out", [prune_step("magnitude", 0.5, "row")])
    weight = Checkpoint(tmp_path / "out" / "0").load("transformer.h.0.mlp.c_fc.weight")
    assert weight.shape == (32, 128)
    assert set((weight == 0).sum(dim=0).tolist()) == {16}
    assert len(set((weight == 0).sum(dim=1).tolist())) > 1


def test_doubles_lose_their_share_of_every_matrix(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_bert).double().save_pretrained(tmp_path / "dense")
    swept(tmp_path / "dense", "encoder", tmp_path / "out", [prune_step("magnitude", 0.5, "layer")])
    found = Checkpoint(tmp_path / "out" / "0")
    for name, place in parts(found, "encoder").items():
        if place.prunable:
            tensor = found.load(name)
            assert tensor.dtype == torch.float64 and int((tensor == 0).sum()) == tensor.numel() // 2, name
    with pytest.raises(ModelError, match="torch.float64"):  # of which no threshold over tensors is made
        swept(tmp_path / "dense", "encoder", tmp_path / "none", [prune_step("magnitude", 0.5, "global")])


def test_a_version_that_lost_zeros_is_gone(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has its name already would pass for whole in the next run."""
    monkeypatch.setattr(counting, "zeros_in", lambda piece: 0)
    with pytest.raises(ModelError, match="have 0 zeros, fewer"):
        swept(tiny_llama, "decoder", tmp_path, [prune_step("magnitude", share, "layer") for share in (0.5, 0.9)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "settings"), [("magnitude", {"sparsity": 0.5}), ("mask", {"file": "masks"})])
def test_a_quantized_model_is_refused(name: str, settings: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    make(tiny_llama, "decoder", {quantize_step(): tmp_path / "int8"})
    step = single("prune", name, **settings)
    with pytest.raises(ModelError, match=r"int8: its weights are quantized already \(int8\)"):
        kinds()["prune"].load()(tmp_path / "int8", {step: tmp_path / "out"}, Context("decoder"), lambda *_: None)


def linears(folder: Path) -> dict[str, torch.nn.Linear]:
    """A BERT's prunable layers as modules."""
    checkpoint = Checkpoint(folder)
    found: dict[str, torch.nn.Linear] = {}
    for name, place in parts(checkpoint, "encoder").items():
        if place.prunable:
            weight = checkpoint.load(name)
            found[name] = torch.nn.Linear(*weight.shape[::-1])
            found[name].weight = torch.nn.Parameter(weight)
    return found


@pytest.mark.parametrize("granularity", ["layer", "global"])
def test_a_second_step_prunes_what_torchs_container_does(granularity: str, tiny_bert: Path, tmp_path: Path) -> None:
    """Entry by entry, l1 after l1; without the setting, 70% of all is another mask."""
    modules = linears(tiny_bert)
    for amount in (0.5, 0.7):
        if granularity == "global":
            pairs = [(module, "weight") for module in modules.values()]
            prune.global_unstructured(pairs, prune.L1Unstructured, amount=amount)
        else:
            for module in modules.values():
                prune.l1_unstructured(module, "weight", amount)
    swept(tiny_bert, "encoder", tmp_path / "first", [prune_step("magnitude", 0.5, granularity)])
    second = [prune_step("magnitude", 0.7, granularity, keep_zeros=keep) for keep in (True, False)]
    results = swept(tmp_path / "first" / "0", "encoder", tmp_path / "second", second)
    kept, plain = (Checkpoint(tmp_path / "second" / str(place)) for place in range(2))
    for name, module in modules.items():
        assert torch.equal(kept.load(name) != 0, module.weight_mask.bool()), name
        assert not torch.equal(plain.load(name) != 0, module.weight_mask.bool())
    prunable = results[second[0]].prunable
    for target, share in zip(second, (0.85, 0.7), strict=True):
        found = results[target]
        assert abs(found.zeros - share * prunable) <= len(modules)
        assert abs(found.already_zero - 0.5 * prunable) <= len(modules)


@pytest.mark.parametrize("granularity", ["row", "layer", "global"])
def test_a_draw_keeps_zeros_and_shares_the_rest(granularity: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Two bytes a weight, and scores that say nothing of zeros: a zero takes no other's place, not even among ties."""
    swept(tiny_llama, "decoder", tmp_path / "first", [prune_step("random", 0.5, "layer")])
    target = prune_step("random", 0.5, granularity, keep_zeros=True)
    # Another seed: the first draw's lowest are gone already.
    results = make(tmp_path / "first" / "0", "decoder", {target: tmp_path / "second"}, seed=8)
    found, before = results[target], Checkpoint(tmp_path / "first" / "0")
    places = parts(before, "decoder")
    weights = [before.load(name) for name, place in places.items() if place.prunable]
    live = [w.count_nonzero(1).tolist() if granularity == "row" else [int(w.count_nonzero())] for w in weights]
    groups = [[sum(map(sum, live))]] if granularity == "global" else live
    made = sum(round(0.5 * number) for group in groups for number in group)
    assert found.already_zero == sum(w.numel() for w in weights) - sum(map(sum, live)) > 0
    assert found.zeros == found.already_zero + made


def torch_mask(weights: torch.Tensor, amount: float, n: float, dim: int, before: torch.Tensor | None = None) -> Any:
    """What torch removes, True."""
    module = torch.nn.Linear(*reversed(weights.shape), bias=False)
    module.weight = torch.nn.Parameter(weights.clone())
    if before is not None:
        prune.custom_from_mask(module, "weight", before)
    prune.ln_structured(module, "weight", amount, n, dim)
    return module.weight_mask == 0


def our_mask(weights: torch.Tensor, amount: float, n: float, dim: int, keep_zeros: bool = False) -> torch.Tensor:
    """What the quota removes, True."""
    pattern = ("rows", "columns")[dim]
    asked = Magnitude(sparsity=amount, norm="inf" if n == float("inf") else int(n), pattern=pattern)
    quota = Quota(amount, "layer", pattern, keep_zeros=keep_zeros, settings=asked)
    (choice,) = choose(weights.abs(), [quota], "w", weights if keep_zeros else None)
    return choice.mask


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (64, 64), (1, 5), (5, 1)])
@pytest.mark.parametrize("n", [1, 2, float("inf")])
def test_rows_and_columns_are_those_of_ln_structured_to_the_bit(shape: tuple[int, int], n: float) -> None:
    """At every amount, also where a share of the rows is half of one: 0.5 of 7 and 0.1 of 5 round to the even number."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    # Doubles are ranked in their own precision.
    for weights in (drawn, 1 + drawn.double() * 1e-10):
        for dim, amount in product((0, 1), (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)):
            assert torch.equal(our_mask(weights, amount, n, dim), torch_mask(weights, amount, n, dim)), (dim, amount)


@pytest.mark.parametrize("dim", [0, 1])
def test_what_is_gone_already_is_not_counted_again_as_in_torch_s_container(dim: int) -> None:
    weights = torch.randn(10, 12, generator=torch.Generator().manual_seed(4))
    before = torch.ones_like(weights)
    before.index_fill_(dim, torch.tensor([0, 3, 4]), 0)
    assert torch.equal(our_mask(weights * before, 0.5, 2, dim, True), torch_mask(weights, 0.5, 2, dim, before))


@pytest.mark.parametrize("pattern", ["rows", "columns"])
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_whole_rows_or_columns_of_a_model_go(method: str, pattern: str, tiny_bert: Path, tmp_path: Path) -> None:
    """As many as `random_structured` takes, and the rest to the bit; a seed and a name decide which."""
    dim = ("rows", "columns").index(pattern)
    swept(tiny_bert, "encoder", tmp_path, [single("prune", method, pattern=pattern, sparsity=0.3)])
    before, after = Checkpoint(tiny_bert), Checkpoint(tmp_path / "0")
    places = parts(before, "encoder")
    drawn = set()
    for name in before.tensors:
        old, new = before.load(name), after.load(name)
        if not places[name].prunable:
            assert torch.equal(old, new)
            continue
        gone = (new == 0).all(1 - dim)
        assert int(gone.sum()) == round(0.3 * old.shape[dim])
        assert torch.equal(new, old * ~gone.unsqueeze(1 - dim))
        drawn.add(tuple(gone.nonzero().flatten().tolist()))
        if method == "magnitude":
            assert torch.equal(gone, torch_mask(old, 0.3, 2, dim).all(1 - dim))
    assert len(drawn) > 1
