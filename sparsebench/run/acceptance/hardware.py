"""Checks that the driver, torch and the card do what they say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsebench import devices
from sparsebench.run.acceptance.bench import GIB, Bench, CheckResult, CheckSkipped
from sparsebench.runtime.latency import Peers

NOMINAL = {
    "H200": (4.8e12, 989e12), "H100 PCIe": (2.0e12, 756e12), "H100": (3.35e12, 989e12), "A100": (2.0e12, 312e12),
    "L40S": (0.864e12, 362e12), "L4": (0.3e12, 121e12), "A10": (0.6e12, 125e12),
}  # fmt: skip
"""By words of the GPU's name, its maker's figures: memory bandwidth in bytes/s, and bfloat16 operations/s."""


def visible(bench: Bench) -> CheckResult:
    """Check that torch sees all GPUs that the driver lists; note what else decides whether anything works."""
    if not bench.gpu:
        raise CheckSkipped("a CPU is examined")
    import torch

    listed, seen = len(devices.visible()), torch.cuda.device_count()
    shm = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    numbers = {
        "listed": listed, "seen": seen, "cuda": devices.cuda_version(), "cusparselt": torch.backends.cusparselt.is_available(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())), "nvcc": shutil.which("nvcc") or "", "shm_bytes": shm,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())), "names": list(devices.names()),
        **_driver(torch.device(bench.device).index or 0),
    }  # fmt: skip
    return listed == seen > 0, f"the driver lists {listed}, torch sees {seen}", numbers


def _driver(index: int) -> dict[str, Any]:
    """Return the driver's version and whether the GPU is partitioned (MIG), by NVML, or why NVML does not say."""
    from sparsebench.energy import Unavailable, gpu, nvml

    found: dict[str, Any] = {}
    for key, ask in (
        ("driver", lambda library: library.nvmlSystemGetDriverVersion()),
        ("mig", lambda library: bool(library.nvmlDeviceGetMigMode(gpu(library, index))[0])),
    ):
        try:
            with nvml() as library:
                found[key] = ask(library)
        except Unavailable as error:
            found[key] = str(error)
    return found


def throughput(bench: Bench) -> CheckResult:
    """Check a copy of 1 GiB and a bfloat16 product of 8192³ against the card's nominal speed."""
    import torch

    side, size = (8192, GIB) if bench.gpu else (512, 2**26)
    peers = Peers(1, bench.gpu)
    a = torch.ones(size, dtype=torch.uint8, device=bench.device)
    b = torch.empty_like(a)
    x = torch.randn(side, side, device=bench.device).to(torch.bfloat16)
    copied = 2 * size / _quickest(peers, lambda: b.copy_(a))
    multiplied = 2 * side**3 / _quickest(peers, lambda: x @ x)
    numbers = {"copy_bytes_s": copied, "product_flops": multiplied}
    detail = f"{copied / 1e9:.0f} GB/s, {multiplied / 1e12:.2f} TFLOP/s"
    nominal = nominal_speeds(devices.hardware(bench.device))
    if nominal is None:
        return None, f"{detail}; no nominal speed is known for this device", numbers
    shares = copied / nominal[0], multiplied / nominal[1]
    return shares[0] >= 0.6 and shares[1] >= 0.5, f"{detail}: {shares[0]:.0%} and {shares[1]:.0%} of nominal", numbers


def nominal_speeds(name: str) -> tuple[float, float] | None:
    """Return the figures in NOMINAL of the GPU ``name``; None for a device that is not among them."""
    return next((speeds for key, speeds in NOMINAL.items() if re.search(rf"\b{key}\b", name)), None)


def _quickest(peers: Peers, step: Callable[[], object]) -> float:
    return min(peers.timed(step)[1][0] for _ in range(5))
