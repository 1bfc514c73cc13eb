"""Replay, pruning, training and scoring on a device that is not the default one: they stay on it, and give what the CPU gives."""

import json
import threading
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench import devices
from sparsebench.benchmarks.batching import BatchSize
from sparsebench.benchmarks.causal import CausalScorer
from sparsebench.benchmarks.encoder import Encoder
from sparsebench.benchmarks.generation import Generation
from sparsebench.benchmarks.perplexity import window_losses, windows_of
from sparsebench.benchmarks.pll import PllScorer, PllTokenizer
from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.batch import Batch
from sparsebench.models.replay.blockwise import Replay
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Step, StepReport
from sparsebench.steps.registry import single
from sparsebench.structure.outputs import compare_outputs
from tests.benchmarks.conftest import changed
from tests.benchmarks.masked_models import save
from tests.elsewhere import DEVICE, There, elsewhere
from tests.making import attempt
from tests.steps.recover import test_whole as whole_model


def calibrated(family: str) -> Calibrated:
    ids = torch.randint(3, 90, (24, 16), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    if family != "decoder":
        mask[0, 8:] = False
    both = Batch(ids, mask, ids.flip(1)[:, :8], mask[:, :8])
    return Calibrated(both if family == "encoder-decoder" else Batch(ids, mask), "ids", "text", int(mask.sum()), ())


def step_of(asked: dict[str, Any], **usual: Any) -> Step:
    """The step of a manifest's entry, whose verb comes first."""
    (verb, name), *settings = asked.items()
    return single(verb, name, **usual | dict(settings))


def made(
    folder: Path, family: Any, steps: list[Step], out: Path, device: str, dense: Path | None = None
) -> dict[Step, Path]:
    folders = {step: out / device / str(number) for number, step in enumerate(steps)}
    found = attempt(folder, family, folders, calibrated(family), dtype="float32", device=device, dense=dense)
    assert [one for one in found.values() if isinstance(one, Exception)] == []
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
    "quantize": [{"quantize": "int4", "rounding": "gptq", "group": 32}],
}  # fmt: skip
LEAST = {"alps": 0.95}
"""Of a mask that must be the same where 99.5% is too much: ALPS searches step by step, and a rounding can lead it elsewhere."""


@pytest.mark.parametrize(
    ("verb", "family"),
    [("prune", "encoder"), *(pytest.param(verb, "decoder", marks=pytest.mark.long) for verb in STEPS)],
)
def test_what_reads_text_is_made_on_the_device_and_is_the_same(
    verb: str, family: str, tiny_llama: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = {"decoder": tiny_llama, "encoder": tiny_bert}[family]
    asked = STEPS[verb] if family == "decoder" else STEPS[verb][:1]
    steps = [step_of(one) for one in asked]
    first = [step for step in steps if getattr(step.settings, "propagate", "") != "dense"]
    for group in filter(None, (first, [step for step in steps if step not in first])):
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


BLOCKWISE: list[dict[str, Any]] = [
    {"recover": "reconstruct", "epochs": 2, "rate": 3e-3},
    {"skip": "teal", "share": 0.1, "allocation": "greedy"},
    {"moefy": "coactivation", "experts": 4, "active": 0.5, "router": "learned"},
]


@pytest.mark.parametrize("asked", BLOCKWISE, ids=lambda one: "-".join(map(str, one.values())))
def test_what_replays_blocks_does_so_on_the_device_and_is_the_same(
    asked: dict[str, Any], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, half = step_of(asked), single("prune", "magnitude", sparsity=0.5)
    recovers = step.verb == "recover"
    parent = made(tiny_llama, "decoder", [half], tmp_path / "half", "cpu")[half] if recovers else tiny_llama
    here = made(parent, "decoder", [step], tmp_path, "cpu", dense=tiny_llama)[step]
    walk, walked = Replay.walk, set()
    monkeypatch.setattr(Replay, "walk", lambda self: walked.add(self.device) or walk(self))
    with elsewhere() as device:
        there = made(parent, "decoder", [step], tmp_path, device, dense=tiny_llama)[step]
    assert walked == {DEVICE} and step.settings.on_device()
    one, other = Checkpoint(here), Checkpoint(there)
    assert one.tensors.keys() == other.tensors.keys()
    for tensor in one.tensors:
        theirs, ours = other.load(tensor).double(), one.load(tensor).double()
        assert torch.equal(theirs == 0, ours == 0) and float((theirs - ours).norm()) <= 1e-3 * float(ours.norm()), (
            tensor
        )
    assert other.config == one.config or step.verb == "skip"
    assert thresholds(other.config) == pytest.approx(thresholds(one.config), rel=1e-2)


def test_the_next_block_is_read_while_one_is_visited(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, batch = Checkpoint(tiny_llama), calibrated("decoder").batch
    load, read, second = Checkpoint.load, list[tuple[str, int]](), threading.Event()

    def spied(self: Checkpoint, name: str, index: int | None = None) -> torch.Tensor:
        read.append((name, threading.get_ident()))
        found = load(self, name, index)
        if ".layers.1." in name:
            second.set()
        return found

    monkeypatch.setattr(Checkpoint, "load", spied)

    def readers(device: str) -> set[int]:
        """The threads that read the blocks."""
        replay = Replay(checkpoint, "decoder", batch, device=device)
        read.clear()
        second.clear()
        for number, block in enumerate(replay.walk()):
            assert {tensor.device.type for tensor in block.tensors.values()} == {device}
            if number == 0:
                assert second.wait(0 if device == "cpu" else 30) == (device != "cpu"), "before it is asked for"
        assert len({name for name, _ in read}) == len(read), "each once"
        return {thread for _, thread in read}

    assert readers("cpu") == {threading.get_ident()}
    with elsewhere() as device:
        assert threading.get_ident() not in readers(device)


def test_a_block_that_cannot_be_read_ends_the_walk_there(tiny_llama: Path, tmp_path: Path) -> None:
    def spoil(name: str, tensor: torch.Tensor) -> None:
        if ".layers.1.mlp.up" in name:
            tensor.fill_(torch.nan)

    broken = changed(tiny_llama, tmp_path / "broken", spoil)
    with elsewhere() as device:
        walk = Replay(Checkpoint(broken), "decoder", calibrated("decoder").batch, device=device).walk()
        assert next(walk).index == 0
        with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight: NaN"):
            next(walk)


def thresholds(config: Any) -> dict[str, float]:
    """Every number in what a config.json says of skipped values, by its place."""
    found, waiting = dict[str, float](), [("", config)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{place}/{key}", one) for key, one in value.items()]
        elif isinstance(value, float):
            found[place] = value
    return found


def shared(folder: Path, device: str) -> list[float]:
    """Likelihoods of answers that share their questions, as the harness asks for them."""
    words = "the a of to and in is it was that cat dog".split()
    pairs = [(" ".join(words[n % 3 :]), f" {words[answer]} tree") for n in range(6) for answer in range(4)]
    decoder = "t5" not in folder.name
    model = load_model(folder, "decoder" if decoder else "encoder-decoder", "float32", device)
    assert {one.device.type for one in model.parameters()} == {device}
    options: dict[str, Any] = {"backend": "causal" if decoder else "seq2seq", "batch_size": 16, "shares_prefixes": True}
    scorer = CausalScorer(pretrained=model, tokenizer=load_tokenizer(folder), **options)
    found = [value for value, _ in scorer.loglikelihood([SimpleNamespace(args=pair) for pair in pairs])]
    assert scorer.sharing.startswith("on" if decoder else "off: lm-eval's own loop")
    return found


def embedded(folder: Path, device: str) -> list[float]:
    texts = ["the cat sat", "on the mat", "a big red house is that"]
    return list(Encoder(folder, None, None, device=device).embed(texts).flatten())


def perplexities(folder: Path, device: str) -> list[float]:
    model = load_model(folder, "decoder", "float32", device)
    return window_losses(model, windows_of([3 + n % 90 for n in range(70)], 16), batch=BatchSize(3))


def pseudo_likelihoods(folder: Path, device: str) -> list[float]:
    from transformers import AutoModelForMaskedLM

    tokenizer, config = load_tokenizer(folder), json.loads((folder / "config.json").read_text())
    model = load_model(folder, "encoder", "float32", device, AutoModelForMaskedLM)
    reader, scorer = PllTokenizer(tokenizer, config), PllScorer(model, tokenizer, 3)
    texts = [reader.continuation("the cat sat", f" on {word} mat") for word in ("the", "a", "big")]
    return [value for answers in scorer.score(texts) for value, _ in answers]


def generated(folder: Path, device: str) -> list[float]:
    """Of each text the tokens that are written, as numbers."""
    model, tokenizer = load_model(folder, "encoder-decoder", "float32"), load_tokenizer(folder)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        # Else a model of random weights writes one token again and again, or what is none.
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw, device="cpu") / 2)
        head: Any = model.get_output_embeddings()
        head.weight[:5], head.weight[len(tokenizer) :] = 0, 0
    moved: Any = model.to(torch.device(device))
    scorer = Generation(moved, tokenizer, 2)
    written = scorer.generate(["the cat sat", "a big red house", "the dog ran"], 4)
    return [float(sum(map(ord, symbol))) for one in written for symbol in one.symbols]


SCORED: dict[str, Any] = {
    "answers of a decoder": ("tiny_llama", shared),
    "answers of an encoder-decoder": ("tiny_t5", shared),
    "embeddings": ("tiny_bert", embedded),
    "perplexity": ("tiny_llama", perplexities),
    "pseudo-likelihoods": ("tiny_masked", pseudo_likelihoods),
    "generation": ("tiny_t5", generated),
}
"""Ways to score: the model's fixture, and what gives numbers of it on a device."""


@pytest.fixture(scope="session")
def tiny_masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its masked-language-model head."""
    return save(tmp_path_factory.mktemp("masked") / "bert", "bert")


@pytest.mark.parametrize("way", SCORED)
def test_scores_are_computed_on_the_device(way: str, request: pytest.FixtureRequest) -> None:
    fixture, scored = SCORED[way]
    folder = request.getfixturevalue(fixture)
    here = scored(folder, "cpu")
    with elsewhere() as device:
        there = scored(folder, device)
    assert len(set(here)) > 2 and there == pytest.approx(here, rel=1e-4, abs=1e-5 if way == "embeddings" else None)


def test_blocks_are_compared_on_the_device(tiny_llama: Path, tiny_t5: Path, tmp_path: Path) -> None:
    step = single("prune", "magnitude", sparsity=0.5)
    for family, folder in (("decoder", tiny_llama), ("encoder-decoder", tiny_t5)):
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
    "asked",
    [
        {"recover": "distill", "top_k": 8, "rate": 1e-2},
        {"recover": "distill", "top_k": 0, "alpha": 0.5, "match": "cos"},
        {"prune": "gradual", "sparsity": 0.6, "frequency": 2},
        {"prune": "elsa", "sparsity": 0.6, "interval": 2},
        {"shrink": "gates", "keep": 0.5},
    ],
)
def test_a_whole_model_is_trained_on_the_device_and_is_the_same(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, parent, family = whole_model.pruned("llama", tmp_path)
    step = step_of(asked, tokens=500, batch=4, rate=asked.get("rate", 3e-3), held_out=0.2, evaluations=2)

    def trained(device: str) -> tuple[Checkpoint, list[float]]:
        found = whole_model.made(parent, family, tmp_path / device, step, dense, device=device)
        assert isinstance(found, StepReport), found
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
