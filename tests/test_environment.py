"""What this machine is: the instructions that decide in which precision to calculate."""

import platform
from pathlib import Path

import pytest
import torch

from sparsebench import environment, processor

ZEN3 = frozenset({"sse2", "avx", "avx2", "fma"})
SKYLAKE = ZEN3 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
ZEN4 = SKYLAKE | {"avx512_bf16"}
SAPPHIRE = ZEN4 | {"avx512_fp16", "amx_bf16", "amx_tile"}


@pytest.mark.parametrize(
    ("flags", "level", "slow"),
    [
        (ZEN3, "AVX2", {"bfloat16", "float16", "auto"}),
        (SKYLAKE, "AVX-512", {"float16"}),
        (ZEN4, "AVX-512 BF16", {"float16"}),
        (SAPPHIRE, "AMX", set()),
        (frozenset(), "", set()),
    ],
)
def test_instructions_decide_emulation(
    flags: frozenset[str], level: str, slow: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "instruction_sets", lambda: flags)
    dtypes = ("bfloat16", "float16", "auto", "float32", "float64")
    assert processor.instructions.__wrapped__() == level
    assert {dtype for dtype in dtypes if processor.is_emulated.__wrapped__(dtype)} == slow


@pytest.mark.parametrize(("asked", "threads"), [("3", 3), ("8,1", 8), ("", None), ("many", None)])
def test_the_outermost_level_has_threads(asked: str, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert environment.environment_record()["threads"] == (threads or environment.cores())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere the CPU is not asked")
def test_pytorch_says_the_same_of_this_machine() -> None:
    assert processor.is_emulated("bfloat16") is not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert processor.is_emulated("float16") is not torch.ops.mkldnn._is_mkldnn_fp16_supported()


def test_a_class_of_machines_has_one_set_of_instructions_and_one_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(instructions: str, generation: str) -> str:
        monkeypatch.setattr(processor, "instructions", lambda: instructions)
        monkeypatch.setattr(processor, "generation", lambda: generation)
        return str(environment.hardware_class.__wrapped__())

    one = named("AVX2", "25.17")
    assert "model 25.17) ×" in one and one != named("AVX-512 BF16", "25.17")
    assert one.replace("25.17", "26.2") == named("AVX2", "26.2")
    assert "model" not in named("AVX2", "")


def test_files_that_were_read_do_not_count_as_used(tmp_path: Path) -> None:
    assert environment._reclaimable_bytes(tmp_path) == 0
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 4096\nactive_file 7\n")
    assert environment._reclaimable_bytes(tmp_path) == 4096


@pytest.mark.parametrize(
    ("limit", "most"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), (None, None)]
)
def test_cores_are_those_whose_time_a_container_may_use(
    limit: str | None, most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_CONTROL_GROUP", tmp_path)
    whole = environment.cores()
    if limit:
        (tmp_path / "cpu.max").write_text(limit)
    assert environment.cores() == (most or whole)
