"""The kernel's peak counter sees what is allocated, and the shared-memory operation is used only where it can be."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsebench import children
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.build import build_model
from sparsebench.models.modules.load import load_model
from sparsebench.runtime import Setting, Workload, all_reduce, memory
from sparsebench.runtime.engines.hf import PlainModel
from sparsebench.runtime.footprint import footprint
from sparsebench.runtime.workload import draw_prompt, phases
from sparsebench.sources import Cache


def test_a_peak_between_two_quiet_moments_is_seen_and_the_next_phase_starts_afresh() -> None:
    meter = memory.MemoryMeter(0, "cpu")
    with meter.phase("busy"):
        held = bytearray(200 * 2**20)
        del held
    with meter.phase("quiet"):
        pass
    busy, quiet = meter.memories
    assert 199 * 2**20 <= busy.peak_bytes < 210 * 2**20
    assert quiet.peak_bytes < 10 * 2**20
    assert busy.peak_rss_bytes - busy.baseline_bytes == busy.peak_bytes


def test_what_a_rank_has_started_counts_in_its_proportional_share() -> None:
    meter = memory.MemoryMeter(0, "cpu")
    with meter.phase("alone"):
        pass
    code = "import sys; held = bytearray(400 * 2**20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdin
        child.stdout.readline()
        with meter.phase("with a child"):
            pass
        child.stdin.close()
    alone, both = (row.pss_bytes or 0 for row in meter.memories)
    assert alone > 0
    assert both - alone > 50 * 2**20, "what others map of the same libraries moves the rest"


def test_own_copies_every_tensor_and_keeps_ties(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, "decoder")
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.named_parameters()}
    memory.copy_out(model)
    for name, value in model.named_parameters():
        address, copy = before[name]
        assert value.data_ptr() != address
        assert torch.equal(value, copy)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tied = model.lm_head.weight.nbytes
    assert memory.tensor_bytes(model) == sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
    assert memory.tensor_bytes(model) < sum(one.nbytes for one in model.state_dict().values()) + tied


@pytest.mark.parametrize("way", ["loaded", "assembled"])
def test_a_prompt_multiplies_by_the_head_without_copying_it(tiny_llama: Path, way: str) -> None:
    """Of a weight that needs no gradient torch 2.13 copies the transpose, for a batch of products (``bmm``)."""
    checkpoint = Checkpoint(tiny_llama)
    model = load_model(tiny_llama, "decoder") if way == "loaded" else build_model(checkpoint, "decoder")
    prompt = draw_prompt(checkpoint.config, Workload(1, 16, 2))

    def batched() -> bool:
        step = next(one for one in phases(PlainModel(model), "decoder", prompt, 2) if one.name == "prefill")
        with torch.profiler.profile(record_shapes=True) as profile:
            step.step()
        called = [event for event in profile.events() if event.name == "aten::bmm"]
        return any(checkpoint.config["vocab_size"] in shape for event in called for shape in event.input_shapes)

    with torch.inference_mode():
        memory.copy_out(model)
        assert not batched()
        model.requires_grad_(False)
        if torch.__version__.startswith("2.13."):
            assert batched(), "this test would see it"


@pytest.mark.parametrize(("name", "family"), [("tiny_llama", "decoder"), ("tiny_t5", "encoder-decoder")])
def test_a_cache_is_counted_to_the_byte(name: str, family: Family, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    config, loaded = Checkpoint(folder).config, load_model(folder, family)
    work = Workload(batch=2, prompt=5, generate=3)
    made = {one.name: one for one in phases(PlainModel(loaded), family, draw_prompt(config, work), 3, keep_cache=False)}
    made["decode"].begin()
    for _ in range(work.generate):
        made["decode"].step()
    if family == "decoder":
        heads = config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"]
        layers, positions = config["num_hidden_layers"], 5 + 3
    else:  # one position of the start token, and the encoder's for cross-attention
        heads, layers, positions = config["num_heads"] * config["d_kv"], config["num_decoder_layers"], 1 + 3 + 5
    assert memory.cache_bytes(made["decode"].cache) == 2 * layers * heads * positions * 2 * loaded.dtype.itemsize
    assert memory.cache_bytes(made["generate"].cache) is None, "it is out of sight"


def test_footprint_grows_with_ranks_a_wider_dtype_and_what_a_larger_request_holds(tiny_llama: Path) -> None:
    def need(ranks: int, dtype: str) -> int:
        return footprint(tiny_llama, Setting("deepspeed", ranks, Workload(), dtype))

    assert need(1, "auto") == need(1, "bfloat16")
    assert need(2, "auto") > need(1, "auto")
    assert need(2, "float32") >= need(2, "bfloat16")

    def of_batch(batch: int, ranks: int = 1) -> int:
        return footprint(tiny_llama, Setting("deepspeed", ranks, Workload(batch, 100, 28), "float32"))

    config = Checkpoint(tiny_llama).config
    heads = config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"]
    cache = 2 * config["num_hidden_layers"] * heads * 128 * 4
    passing = 100 * (4 * config["hidden_size"] + 3 * config["intermediate_size"]) * 4
    assert of_batch(101) - of_batch(1) == 100 * (cache + passing), "a decoder's"
    assert of_batch(101, 2) - of_batch(1, 2) == 100 * (cache + 2 * passing)


def test_a_missing_compiler_is_named_and_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in (all_reduce.compile_once(Cache()) or "")
    assert not all_reduce.extensions_dir(Cache()).exists()


@pytest.mark.skipif(not shutil.which("c++"), reason="no c++")
def test_a_compiler_may_be_called_by_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env c++")
    assert all_reduce.requirements()[0][:2] == ("C++ compiler", True)


Compilation = Callable[[], subprocess.CompletedProcess[str]]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Compilation]:
    """What compiling does, one call after another; nothing that it needs is missing."""
    coming: list[Compilation] = []
    monkeypatch.setattr(all_reduce, "requirements", tuple)
    monkeypatch.setattr(children, "run", lambda *_: coming.pop(0)())
    return coming


@pytest.mark.parametrize(
    ("code", "stdout", "again"),
    [
        (0, "", False),
        (1, "", False),
        (-9, "", True),
        (1, "g++: fatal error: Killed signal terminated program cc1plus", True),
    ],
)
def test_what_compiling_gave_is_remembered_unless_it_was_killed(
    code: int, stdout: str, again: bool, compilations: list[Compilation]
) -> None:
    first = subprocess.CompletedProcess([], code, stdout, "building\nerror: unknown flag")
    compilations += [lambda: first, lambda: subprocess.CompletedProcess([], 0, "", "")]
    reason = all_reduce.compile_once(Cache())
    assert (reason is None) == (code == 0) and (code == 0 or "error: unknown flag" in reason)
    assert all_reduce.compile_once(Cache()) == (None if again else reason)
    assert len(compilations) == (0 if again else 1)


def test_a_cache_that_cannot_be_written_is_a_reason_too(tmp_path: Path, compilations: list[Compilation]) -> None:
    """The ranks then use plain gloo."""
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in (all_reduce.compile_once(Cache(tmp_path / "file")) or "")


def test_a_dead_ranks_lock_is_removed_and_a_living_ones_named(compilations: list[Compilation]) -> None:
    lock = all_reduce.extensions_dir(Cache()) / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    taken = f"import os, signal; os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL); "
    died = subprocess.run([sys.executable, "-c", taken + "os.kill(os.getpid(), signal.SIGKILL)"], check=False)
    assert died.returncode == -signal.SIGKILL and lock.exists()
    compilations.append(lambda: subprocess.CompletedProcess([], int(lock.exists()), "", "it waits for the lock"))
    assert all_reduce.compile_once(Cache()) is None
    held = os.open(lock, os.O_CREAT | os.O_EXCL)
    try:
        assert all_reduce.compile_once(Cache()) is None
        assert all_reduce.remove_stale_locks(lock.parents[1]) == {lock: os.getpid()}
    finally:
        os.close(held)
