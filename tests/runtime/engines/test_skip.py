"""The engine that leaves weights unread, judged against masks; and engines that would read them all."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import cache_name
from sparsebench.runtime import Setting, Workload, measure_latency, memory
from sparsebench.runtime.engines import engine
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.kernels import Kernels, kernels
from sparsebench.runtime.workload import draw_prompt
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import single
from tests.runtime.engines.pruned import dense_model, prune, started
from tests.steps.skip.making import made

WORK = Workload(batch=1, prompt=12, generate=4)
TEAL, CATS = single("skip", "teal", share=0.5), single("skip", "cats", share=0.5)
MOEFY = single("moefy", "kmeans", experts=8, active=0.5)
ORACLE = single("moefy", "kmeans", experts=8, active=0.5, router="oracle")


@pytest.mark.parametrize(
    ("name", "step", "dtype"),
    [
        ("tiny_llama", TEAL, "bfloat16"),
        ("tiny_llama", CATS, "float32"),
        ("tiny_llama", MOEFY, "bfloat16"),
        ("tiny_llama", ORACLE, "float32"),
        ("tiny_bert", CATS, "float32"),
        ("tiny_t5", MOEFY, "float32"),
        ("gpt2", TEAL, "float32"),
        ("gpt2", MOEFY, "bfloat16"),
    ],
    ids=str,
)
def test_it_is_the_masked_model(
    name: str, step: Step, dtype: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    parent, family = dense_model(name, request, tmp_path / "gpt2")
    made(parent, family, {step: tmp_path / "out"})
    source, prompt = SavedModel(tmp_path / "out", family, dtype), draw_prompt(Checkpoint(parent).config, WORK)
    found = started("skip")
    judged = found.parity(source, prompt)
    assert 0 < judged.relative_l2 <= judged.tolerance and not judged.wraps_only
    loaded = found.load(source, 20, False)
    memory.copy_out(loaded.module)
    assert found.kernel.startswith("skipping ") and "100% of the weights read" in found.kernel
    assert ("outputs that are used" in found.kernel) == (step == MOEFY or (name, step) == ("tiny_llama", CATS))
    if family == "decoder":
        with torch.inference_mode():
            loaded.generate(torch.tensor([[5]]), max_new_tokens=3, do_sample=False)
        assert "100%" not in found.kernel
    assert engine("skip").parity(SavedModel(parent, family, dtype), prompt) is None


def test_the_plain_engine_computes_with_all_and_says_so(tiny_llama: Path, tmp_path: Path) -> None:
    made(tiny_llama, "decoder", {TEAL: tmp_path / "out"})
    found = started("hf")
    found.load(SavedModel(tmp_path / "out", "decoder"), 20, False)
    assert "masked" in found.kernel


@pytest.mark.parametrize("step", [TEAL, CATS, MOEFY], ids=str)
def test_zeros_and_skipping_save_together(step: Step, tiny_llama: Path, tmp_path: Path) -> None:
    prune(tiny_llama, tmp_path / "pruned", 0.6)
    made(tmp_path / "pruned", "decoder", {step: tmp_path / "out"})
    source, found = SavedModel(tmp_path / "out", "decoder", "float32"), started("skip")
    judged = found.parity(source, draw_prompt(Checkpoint(tiny_llama).config, WORK))
    assert judged.relative_l2 <= judged.tolerance
    loaded, kernel = found.load(source, 20, False), kernels()
    assert isinstance(kernel, Kernels)
    with torch.inference_mode():
        loaded.generate(torch.tensor([[5, 6, 7]] * 4), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert "4 tokens at once: " in found.kernel
    if not kernel.level.startswith("avx512"):
        assert "bitmask" not in found.kernel
        return
    (met, kept), *_ = re.findall(r"4 tokens at once: (\d+)% of the weights met, (\d+)% not zero", found.kernel)
    assert "bitmask" in found.kernel and 0 < int(kept) < 0.5 * int(met)


def test_a_batch_of_a_few_says_what_each_says_alone(tiny_llama: Path, tmp_path: Path) -> None:
    made(tiny_llama, "decoder", {MOEFY: tmp_path / "out"})
    found, ids = started("skip"), torch.tensor([[5, 6, 7], [9, 4, 3], [8, 8, 2]])
    model = found.load(SavedModel(tmp_path / "out", "decoder", "float32"), 20, False).module

    def last(rows: torch.Tensor) -> torch.Tensor:
        """The logits of the third token behind a cache of two, as decoding has it."""
        name, first = cache_name(model), model(input_ids=rows[:, :2], use_cache=True)
        said: torch.Tensor = model(input_ids=rows[:, 2:], **{name: first[name]}).logits
        return said

    with torch.inference_mode():
        together, alone = last(ids), torch.cat([last(row[None]) for row in ids])
    assert float((together - alone).norm() / alone.norm()) <= 1e-5
    assert "3 tokens at once: " in found.kernel and "100%" not in found.kernel.split("3 tokens at once: ")[1][:5]


@pytest.mark.long
@pytest.mark.slow
def test_it_is_timed_beside_dense(tiny_llama: Path, tmp_path: Path) -> None:
    made(tiny_llama, "decoder", {TEAL: tmp_path / "out"})
    how = Setting("skip", 1, WORK, samples=8, threads=1, phase_seconds=0.5, timeout_seconds=100, dtype="bfloat16")
    found: dict[str, Any] = {}
    measure_latency(tiny_llama, [("variant", tmp_path / "out")], "decoder", how, found.__setitem__)
    assert found["variant"].kernel.startswith("skipping") and found["variant"].parity is not None
