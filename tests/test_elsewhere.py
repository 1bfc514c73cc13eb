"""Replay, pruning, training and scoring on a device that is not the default one: they stay on it, and give what the CPU gives."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench import devices
from sparsebench.models.batch import Batch
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Context, Evidence, Step
from sparsebench.steps.registry import combinations, kinds, single
from sparsebench.structure.outputs import compare_outputs
from tests.elsewhere import DEVICE, There, elsewhere
from tests.steps.recover import test_whole as whole_model


def calibrated(family: str) -> Calibrated:
    ids = torch.randint(3, 90, (24, 16), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    if family != "decoder":
        mask[0, 8:] = False
    both = Batch(ids, mask, ids.flip(1)[:, :8], mask[:, :8])
    return Calibrated(both if family == "encoder-decoder" else Batch(ids, mask), "ids", "text", int(mask.sum()), ())


def made(
    folder: Path, family: Any, steps: list[Step], out: Path, device: str, dense: Path | None = None
) -> dict[Step, Path]:
    context = Context(family, dtype="float32", read=lambda: calibrated(family), device=device, dense=dense)
    folders = {step: out / device / str(number) for number, step in enumerate(steps)}
    failed: list[Any] = []
    verb = steps[0].verb
    kinds()[verb].load()(
        folder, folders, context, lambda _, found: failed.extend([found] * isinstance(found, Exception))
    )
    assert failed == []
    return folders


def test_the_other_device_is_one() -> None:
    with elsewhere() as device:
        there = torch.arange(6, device=device).float()
        assert there.device.type == DEVICE and isinstance(there * 2, There) and float((there * 2).sum()) == 30
        assert not isinstance(there.cpu(), There) and torch.equal(there.cpu(), torch.arange(6).float())
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.arange(6)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


STEPS: dict[str, list[dict[str, Any]]] = {
    "prune": [
        {"prune": "sparsegpt", "sparsity": 0.5}, {"prune": "sparsegpt", "pattern": "2:4"}, {"prune": "wanda", "sparsity": 0.6},
        {"prune": "wanda", "sparsity": 0.5, "allocation": "owl"}, {"prune": "ria", "pattern": "4x4", "sparsity": 0.5},
        {"prune": "alps", "sparsity": 0.7}, {"prune": "sparsegpt", "sparsity": 0.5, "propagate": "dense"},
    ],
    "quantize": [{"quantize": "int4", "rounding": "gptq", "symmetric": False, "group": 32}],
}  # fmt: skip
LEAST = {"alps": 0.95}
"""Of a mask that must be the same where 99.5% is too much: ALPS searches step by step, and a rounding can lead it elsewhere."""


@pytest.mark.parametrize(
    ("verb", "family"),
    [
        ("prune", "encoder"),
        pytest.param("prune", "decoder", marks=pytest.mark.long),
        pytest.param("prune", "encoder-decoder", marks=pytest.mark.long),
        pytest.param("quantize", "encoder", marks=pytest.mark.long),
        pytest.param("quantize", "decoder", marks=pytest.mark.long),
    ],
)
def test_what_reads_text_is_made_on_the_device_and_is_the_same(
    verb: str, family: str, tiny_llama: Path, tiny_bert: Path, tiny_t5: Path, tmp_path: Path
) -> None:
    folder = {"decoder": tiny_llama, "encoder": tiny_bert, "encoder-decoder": tiny_t5}[family]
    asked = STEPS[verb] if family == "decoder" else STEPS[verb][:1]
    steps = [
        step for one in asked for step in combinations(verb, one[verb], {k: v for k, v in one.items() if k != verb})
    ]
    groups = [[step for step in steps if step.settings.get("propagate") != "dense"]]
    groups += [[step for step in steps if step.settings.get("propagate") == "dense"]]
    for group in filter(None, groups):
        here = made(folder, family, group, tmp_path, "cpu")
        with elsewhere() as device:
            there = made(folder, family, group, tmp_path, device)
        for step in group:
            one, other = (Checkpoint(place[step]) for place in (here, there))
            for name, info in one.tensors.items():
                a, b = one.load(name), other.load(name)
                if info.dtype in ("F32", "BF16"):
                    same = float(((a == 0) == (b == 0)).double().mean())
                    assert same >= LEAST.get(step.name, 0.995), f"{step.name}: {name}: {same:.2%} of the mask"


def test_scores_are_computed_on_the_device(tiny_llama: Path, tiny_t5: Path) -> None:
    from sparsebench.benchmarks.causal import CausalScorer
    from sparsebench.models.load import load_model, load_tokenizer

    words = "the a of to and in is it was that cat dog".split()
    asked = [
        SimpleNamespace(args=(" ".join(words[n % 3 :]), f" {words[answer]} tree"))
        for n in range(6)
        for answer in range(4)
    ]

    def scored(device: str, family: Any, folder: Path) -> tuple[list[float], str]:
        model = load_model(folder, family, "float32", device)
        assert {one.device.type for one in model.parameters()} == {device}
        backend: Any = "causal" if family == "decoder" else "seq2seq"
        scorer: Any = CausalScorer(pretrained=model, tokenizer=load_tokenizer(folder), backend=backend, batch_size=16)
        scorer.share = True
        return [value for value, _ in scorer.loglikelihood(asked)], scorer.sharing

    for family, folder in (("decoder", tiny_llama), ("encoder-decoder", tiny_t5)):
        here, sharing = scored("cpu", family, folder)
        with elsewhere() as device:
            there, also = scored(device, family, folder)
        assert there == pytest.approx(here, rel=1e-4)
        assert sharing == also


def test_an_encoder_embeds_on_the_device(tiny_bert: Path) -> None:
    from sparsebench.benchmarks.encoder import Encoder

    texts = ["the cat sat", "on the mat", "a big red house is that"]
    here = Encoder(tiny_bert, None, None).embed(texts)
    with elsewhere() as device:
        there = Encoder(tiny_bert, None, None, device=device).embed(texts)
    assert abs(here - there).max() < 1e-5


def test_blocks_are_compared_on_the_device(tiny_llama: Path, tiny_bert: Path, tiny_t5: Path, tmp_path: Path) -> None:
    step = single("prune", "magnitude", sparsity=0.5)
    families: list[tuple[Any, Path]] = [("decoder", tiny_llama), ("encoder", tiny_bert), ("encoder-decoder", tiny_t5)]
    for family, folder in families:
        variant = made(folder, family, [step], tmp_path / family, "cpu")[step]
        asked = (folder, variant, family, calibrated(family).batch, "float32")
        here = compare_outputs(*asked)
        with elsewhere() as device:
            there = compare_outputs(*asked, device=device)
        assert here.tokens == there.tokens and len(here.blocks) >= 2
        for one, other in zip(here.blocks, there.blocks, strict=True):
            assert astuple(other)[2:] == pytest.approx(astuple(one)[2:], rel=1e-4) and min(astuple(one)[2:]) > 0


class Accelerator:
    """accelerate's, as far as a training asks for it, with the device in place of a GPU."""

    def __init__(self, cpu: bool) -> None:
        assert not cpu
        self.device = torch.device(DEVICE)

    def prepare(self, optimizer: Any) -> Any:
        return optimizer

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, leaves: list[torch.Tensor], most: float) -> None:
        torch.nn.utils.clip_grad_norm_(leaves, most)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("llama", {"recover": "distill", "train": "low_rank", "rank": 4, "top_k": 8, "rate": 1e-2}),
        ("llama", {"recover": "distill", "top_k": 0, "alpha": 0.5, "match": "cos"}),
        ("bert", {"recover": "distill"}),
        ("llama", {"prune": "gradual", "sparsity": 0.6, "frequency": 2}),
        ("llama", {"prune": "gradual", "by": "movement", "sparsity": 0.6, "frequency": 2}),
        ("llama", {"prune": "gradual", "by": "rigl", "sparsity": 0.6, "frequency": 2}),
        ("llama", {"prune": "elsa", "sparsity": 0.6, "interval": 2}),
        ("llama", {"shrink": "gates", "keep": 0.5}),
    ],
)
def test_a_whole_model_is_trained_on_the_device_and_is_the_same(
    kind: str, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, parent, family = whole_model.pruned(kind, tmp_path)
    verb, name = next(iter(asked.items()))
    usual = {"tokens": 1000, "batch": 4, "rate": 3e-3, "held_out": 0.2, "evaluations": 2}
    step = single(verb, name, **{**usual, **{key: value for key, value in asked.items() if key != verb}})

    def trained(device: str) -> tuple[Checkpoint, list[float]]:
        found = whole_model.made(parent, family, tmp_path / device, step, dense, device=device)
        assert isinstance(found, Evidence), found
        return Checkpoint(tmp_path / device), [point.held_out for point in found.curve]

    here, curve = trained("cpu")
    monkeypatch.setattr("accelerate.Accelerator", Accelerator)
    monkeypatch.setattr(devices, "is_gpu", lambda device: device == DEVICE)
    with elsewhere() as device:
        there, also = trained(device)
    assert also == pytest.approx(curve, rel=1e-3)
    old, changed = Checkpoint(parent), 0
    for tensor in here.tensors:
        one, other = here.load(tensor), there.load(tensor)
        assert float(((one == 0) == (other == 0)).double().mean()) >= 0.995, tensor
        before = old.load(tensor)
        changed += one.shape != before.shape or int((one != before).sum())
    assert changed
