"""Replay, pruning and scoring on a device that is not the default one: they stay on it, and give what the CPU gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench.models.batch import Batch
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Context, Step
from sparsebench.steps.registry import combinations, kinds
from tests.elsewhere import DEVICE, There, elsewhere


def calibrated(family: str) -> Calibrated:
    ids = torch.randint(3, 90, (24, 16), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    if family != "decoder":
        mask[0, 8:] = False
    both = Batch(ids, mask, ids.flip(1)[:, :8], mask[:, :8])
    return Calibrated(both if family == "encoder-decoder" else Batch(ids, mask), "ids", "text", int(mask.sum()), ())


def made(folder: Path, family: Any, steps: list[Step], out: Path, device: str) -> dict[Step, Path]:
    context = Context(family, dtype="float32", read=lambda: calibrated(family), device=device)
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
    from sparsebench.benchmarks.causal import Scorer
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
        scorer: Any = Scorer(pretrained=model, tokenizer=load_tokenizer(folder), backend=backend, batch_size=16)
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
