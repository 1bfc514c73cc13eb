"""No tensor is made on whatever device is the default: none says so in its text, and none does it when it runs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from sparsebench.steps.contract import StepReport
from sparsebench.steps.registry import single
from sparsebench.structure.outputs import compare_outputs
from tests.steps.recover import test_whole as whole_model
from tests.test_elsewhere import SCORED, calibrated, made, tiny_masked  # noqa: F401

ROOT = Path(__file__).parent.parent / "sparsebench"
MAKERS = (
    "arange empty empty_strided eye full linspace logspace ones rand randint randn randperm tensor zeros as_tensor asarray"
).split()
STAYS = "of a step that stays on the CPU: it reads and writes files, or replays a block at a time"
GROUPED = "neurons are grouped, and routers trained, on the CPU"
ON_THE_CPU = {
    "models/shape/axes.py": "marks of what goes, counted on the CPU",
    "models/files/checkpoint.py": "the bytes of a file",
    "models/random_weights.py": "weights that are drawn on their way into a file",
    "runtime/kernels/linear.py": "what C++ kernels write",
    "steps/floor.py": "weights on their way into a file",
    **dict.fromkeys((f"steps/moefy/{name}.py" for name in ("grouping", "making", "metis", "routers", "use")), GROUPED),
    **dict.fromkeys(
        (f"steps/shrink/{name}.py" for name in "compensation depth labelled scores".split()),
        STAYS,
    ),
    "steps/cut_model.py": STAYS,
    "steps/skip/magnitudes.py": "counts, which stay on the CPU",
    "steps/trim/weights.py": STAYS,
    "steps/samples.py": "texts in tokens, before a model reads them",
    "storage/packed.py": "the bytes of a file",
    "steps/prune/methods/random.py": "draws by the CPU's generator, for methods that look at weights alone",
}
"""Files whose tensors are a CPU's, and why."""


def bare(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of every call that makes a tensor without saying where, and of every ``.cuda()``."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        makes = of_torch and node.func.attr in MAKERS
        says = any(word.arg in ("device", None) for word in node.keywords)
        if (makes and not says) or (node.func.attr == "cuda" and not node.args and not of_torch):
            yield node.lineno, ast.unparse(node)


def test_every_tensor_says_where_it_lies() -> None:
    found, files = [], sorted(ROOT.rglob("*.py"))
    for path in files:
        name = str(path.relative_to(ROOT))
        found += [f"{name}:{line}: {text}" for line, text in bare(path.read_text()) if name not in ON_THE_CPU]
    assert found == []
    assert len(files) > 200


def test_the_list_of_exceptions_holds_nothing_that_needs_none() -> None:
    assert [name for name in ON_THE_CPU if not any(bare((ROOT / name).read_text()))] == []


def test_what_is_bare_is_found() -> None:
    text = "torch.zeros(3)\nweight.cuda()\ntorch.ones(2, device=x.device)\ntorch.full(shape, 1, **like)\ntorch.cuda()\n"
    assert [line for line, _ in bare(text)] == [1, 2]


class Stated(TorchFunctionMode):
    """While this lasts a tensor that this program makes without saying where is an error; what torch and transformers make is not
    ours."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        caller = Path(sys._getframe(1).f_code.co_filename)
        if func in FACTORIES and "device" not in (kwargs or {}) and caller.is_relative_to(ROOT):
            name = str(caller.relative_to(ROOT))
            assert name in ON_THE_CPU, f"{name}:{sys._getframe(1).f_lineno}: {func.__name__} without a device"
        return func(*args, **(kwargs or {}))


FACTORIES = [getattr(torch, name) for name in MAKERS]
RUNS: dict[str, list[dict[str, Any]]] = {
    "prune": [{"prune": "sparsegpt", "sparsity": 0.5}, {"prune": "wanda", "sparsity": 0.5}, {"prune": "alps", "sparsity": 0.5}],
    "quantize": [{"quantize": "int4", "rounding": "gptq", "group": 32}],
    "recover": [{"recover": "reconstruct", "epochs": 1}],
    "shrink": [{"shrink": "flap", "parameters": 0.8}],
    "skip": [{"skip": "teal", "share": 0.5}],
    "moefy": [{"moefy": "coactivation", "experts": 4, "active": 0.5}],
}  # fmt: skip


@pytest.mark.parametrize("verb", RUNS)
def test_no_step_makes_a_tensor_without_a_device(verb: str, tiny_llama: Path, tmp_path: Path) -> None:
    pruned = single("prune", "magnitude", sparsity=0.5)
    parent = made(tiny_llama, "decoder", [pruned], tmp_path, "cpu")[pruned] if verb == "recover" else tiny_llama
    for number, one in enumerate(RUNS[verb]):
        step = single(verb, one[verb], **{key: value for key, value in one.items() if key != verb})
        with Stated():
            folders = made(parent, "decoder", [step], tmp_path / str(number), "cpu", dense=tiny_llama)
            if verb == "prune":
                assert compare_outputs(tiny_llama, folders[step], "decoder", calibrated("decoder").batch).tokens > 0
            assert (folders[step] / "config.json").is_file()


@pytest.mark.parametrize("way", SCORED)
def test_no_score_makes_a_tensor_without_a_device(way: str, request: pytest.FixtureRequest) -> None:
    fixture, scored = SCORED[way]
    with Stated():
        assert scored(request.getfixturevalue(fixture), "cpu")


def test_no_embedding_and_no_harness_makes_one(tiny_llama: Path, tiny_bert: Path) -> None:
    from sparsebench.benchmarks.causal import CausalScorer
    from sparsebench.benchmarks.encoder import Encoder
    from sparsebench.models.files.text import load_tokenizer
    from sparsebench.models.modules.load import load_model

    asked = [SimpleNamespace(args=("the cat sat on a", f" {word} mat")) for word in ("cat", "dog", "tree")]
    model, tokenizer = load_model(tiny_llama, "decoder"), load_tokenizer(tiny_llama)
    scorer: Any = CausalScorer(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=2)
    scorer.share = True
    with Stated():
        assert len(scorer.loglikelihood(asked)) == 3 and scorer.sharing == "on"
        assert len(Encoder(tiny_bert, None, None).embed(["the cat sat", "on the mat"])) == 2


@pytest.mark.parametrize("asked", [{"recover": "finetune"}, {"recover": "distill", "top_k": 8}])
def test_no_training_makes_one(asked: dict[str, Any], tmp_path: Path) -> None:
    dense, parent, family = whole_model.pruned("llama", tmp_path)
    name = asked["recover"]
    step = whole_model.step(name, tokens=400, **{key: value for key, value in asked.items() if key != "recover"})
    with Stated():
        found = whole_model.made(parent, family, tmp_path / "out", step, dense)
    assert isinstance(found, StepReport), found


def test_a_tensor_that_does_not_say_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", Path(__file__).parent)
    with Stated():
        torch.zeros(2, device="cpu")
        with pytest.raises(AssertionError, match=r"test_device_clean.py:\d+: zeros without a device"):
            torch.zeros(2)
