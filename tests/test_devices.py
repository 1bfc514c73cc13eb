"""Which GPUs a program sees, what a device means, what is said where torch does not see them, and what the CPU can calculate."""

import platform
import sys
from pathlib import Path

import pytest
import torch

from sparsebench import children, devices, environment, processor
from sparsebench.errors import UserError
from tests.gpus import H100, Driver, install_torch


def test_without_a_driver_everything_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.visible_gpus() == ()
    assert devices.resolve("auto") == devices.resolve("cpu") == "cpu"
    with pytest.raises(UserError, match="device: cuda: there is no GPU that may be used") as caught:
        devices.resolve("cuda")
    assert "device: cpu" in (caught.value.hint or "")


def test_a_driver_that_lists_nothing_is_no_reason_for_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(devices.VISIBLE_DEVICES, raising=False)
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(children, "GPU_DEVICE_FILES", (str(tmp_path / "nvidiactl"),))
    for visible in (None, "0,1", "GPU-a"):
        if visible:
            monkeypatch.setenv(devices.VISIBLE_DEVICES, visible)
        with pytest.raises(UserError, match="no GPU that may be used") as caught:
            devices.resolve("auto")
        assert "device: cpu" in (caught.value.hint or "")
        assert devices.resolve("cpu") == "cpu"
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv(devices.VISIBLE_DEVICES, hidden)
        assert devices.resolve("auto") == "cpu", "who hides them asks for it"


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, ["GPU-a0", "GPU-b1", "GPU-c2"]),
        ("2,0", ["GPU-c2", "GPU-a0"]),
        ("GPU-b", ["GPU-b1"]),
        ("0,9,1", ["GPU-a0"]),
        ("-1", []),
        ("", []),
        ("MIG-x", ["MIG-x"]),
    ],
)
def test_visible_is_what_cuda_makes_of_its_variable(
    chosen: str | None, seen: list[str], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.lists([("GPU-a0", H100, "80000"), ("GPU-b1", H100, "100"), ("GPU-c2", H100, "[N/A]")])
    monkeypatch.delenv(devices.VISIBLE_DEVICES, raising=False)
    if chosen is not None:
        monkeypatch.setenv(devices.VISIBLE_DEVICES, chosen)
    assert [one.uuid for one in devices.visible_gpus()] == seen


def test_of_amds_tool_only_the_lines_of_cards_are_gpus(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns on stdout of cards that sleep."""
    driver.tool.with_name("rocm-smi").write_text(
        "#!/bin/sh\ncat <<'END'\n\n\nWARNING: AMD GPU device(s) is/are in a low-power state. Check power "
        "control/runtime_status\n\ndevice,Card Series,Card Model\ncard1,Radeon RX 7800 XT,0x747e\nEND\n"
    )
    driver.tool.with_name("rocm-smi").chmod(0o755)
    driver.tool.unlink(missing_ok=True)
    assert devices.visible_gpus() == (devices.Gpu(0, "Radeon RX 7800 XT,0x747e"),)


def test_free_memory_is_that_of_the_gpus_that_are_meant(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.lists([("GPU-a0", H100, "80000"), ("GPU-b1", H100, "100")])
    assert devices.free_memory("cuda") == 100 * 2**20
    assert devices.free_memory("cuda:0") == 80000 * 2**20
    assert devices.free_memory("cuda", 1) == 80000 * 2**20, "one rank is on the first, whatever the second holds"
    assert devices.free_memory("cuda", 2) == 100 * 2**20
    monkeypatch.setenv(devices.VISIBLE_DEVICES, "0")
    assert devices.free_memory("cuda") == 80000 * 2**20
    assert devices.free_memory("cpu") is None


def test_a_torch_that_does_not_see_the_drivers_gpu_is_an_error(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.lists([("GPU-a0", H100, "80000")])
    install_torch(tmp_path, monkeypatch, None)
    for asked in ("auto", "cuda", "cuda:0"):
        with pytest.raises(UserError, match=f"device: {asked}: .*1 GPU .*{H100}.*for a CPU only") as caught:
            devices.resolve(asked)
        assert "device: cpu" in (caught.value.hint or "")
    assert devices.resolve("cpu") == "cpu"
    install_torch(tmp_path, monkeypatch, "13.0", words="the driver is too old")
    with pytest.raises(UserError, match=r"torch sees none \(torch built for 13.0; the driver is too old\)"):
        devices.resolve("cuda")
    install_torch(tmp_path, monkeypatch, "13.0", seen=1)
    assert (devices.resolve("auto"), devices.resolve("cuda:0")) == ("cuda", "cuda:0")
    with pytest.raises(UserError, match="cuda:1: 1 GPU is visible"):
        devices.resolve("cuda:1")
    with pytest.raises(UserError, match="there is no 'tpu'"):
        devices.resolve("tpu")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert devices.visibility_problem(1) == "torch is not installed", "and not: for a CPU only"


def test_the_cuda_version_is_that_of_the_installed_torch(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices.cuda_version() == (torch.version.cuda or "")
    for cuda, hip, version in (("13.0", None, "13.0"), (None, "6.4.1", "rocm 6.4.1"), (None, None, "")):
        install_torch(tmp_path, monkeypatch, cuda, hip)
        assert devices.cuda_version() == version


def test_a_place_names_the_device_its_cuda_and_no_count_of_gpus(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_torch(tmp_path, monkeypatch, "13.0")
    here = environment.place("cpu")
    assert (here["device"], here["cuda"]) == ("cpu", "")
    driver.lists([("GPU-a0", H100, "1"), ("GPU-b1", H100, "1")])
    assert environment.place("cpu") == here, "a GPU that is not used is no part of the place"
    both = environment.place("cuda")
    assert (both["device"], both["cuda"]) == (H100, "13.0") and H100 in both["machine"]
    driver.lists([("GPU-a0", H100, "1")])
    assert environment.place("cuda") == environment.place("cuda:0") == both
    install_torch(tmp_path, monkeypatch, "12.8")
    assert environment.place("cuda")["id"] != both["id"] != here["id"]


def test_a_child_sees_the_device_that_it_was_given_and_no_other(driver: Driver) -> None:
    driver.lists([("GPU-a0", H100, "1"), ("GPU-b1", H100, "1")])
    assert devices.visible_to_child("cpu") == {devices.VISIBLE_DEVICES: ""}
    assert devices.visible_to_child("cuda:1") == {devices.VISIBLE_DEVICES: "GPU-b1"}
    assert devices.visible_to_child("cuda") == {}
    assert [devices.single_device(one) for one in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda"]


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
