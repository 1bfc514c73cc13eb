"""Sixteen checks of a machine's GPUs: does what this program does there do what it says? Random weights, offline, minutes.

``--device cpu`` runs those that mean something on a CPU, on small models, so that the checks themselves are checked where there
is no GPU.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sparsebench import devices, environment
from sparsebench.errors import MeasureError, SparsebenchError, UnsupportedError
from sparsebench.run.accepted_models import TINY, TRUE, tokenizer
from sparsebench.runtime import MemoryResult, Setting, Workload, measure_memory, measure_pair
from sparsebench.runtime import hosts as hostfiles
from sparsebench.runtime.footprint import working_bytes
from sparsebench.runtime.graphs import GRAPH
from sparsebench.runtime.latency import Peers
from sparsebench.runtime.launch import RankGroup, variables
from sparsebench.runtime.nodes import NodeGroup
from sparsebench.runtime.results import LatencyResult

if TYPE_CHECKING:
    import torch

GIB = 2**30
WORDS = 90
"""Of the vocabulary that questions are made of."""
NOMINAL = {
    "H200": (4.8e12, 989e12), "H100": (3.35e12, 989e12), "A100": (2.0e12, 312e12), "L40S": (0.864e12, 362e12),
    "L4": (0.3e12, 121e12), "A10": (0.6e12, 125e12),
}  # fmt: skip
"""By a part of the GPU's name, bytes a second of its memory and bfloat16 operations a second, as its maker says."""


class Skip(Exception):
    """The check means nothing here; the message says why."""


@dataclass(frozen=True)
class Check:
    """One check: ``verdict`` is yes, no or skip, ``detail`` says what was seen, ``numbers`` are what it was judged by."""

    number: int
    what: str
    verdict: str
    detail: str
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


Seen = tuple[bool | None, str, dict[str, Any]]
"""Whether it passes (None: nothing to judge by), what was seen, and the numbers."""


def examine(device: str, ranks: int, nodes: hostfiles.Hosts = ()) -> Iterator[Check]:
    """Every check in turn on a resolved ``device`` with at most so many ranks, the last one on other ``nodes``; one that fails
    with an error says no."""
    with tempfile.TemporaryDirectory(prefix="sparsebench-doctor-") as folder:
        bench = Bench(device, ranks, Path(folder), nodes)
        for number, (what, check) in enumerate(CHECKS.items(), 1):
            started = time.perf_counter()
            numbers: dict[str, Any] = {}
            try:
                passed, detail, numbers = check(bench)
                verdict = "skip" if passed is None else "yes" if passed else "no"
            except Skip as reason:
                verdict, detail = "skip", str(reason)
            except (
                SparsebenchError,
                RuntimeError,
                OSError,
                ValueError,
                AssertionError,
            ) as error:  # the next ones go on
                verdict, detail = "no", " ".join(f"{type(error).__name__}: {error}".split())[:400]
            yield Check(number, what, verdict, detail, numbers, round(time.perf_counter() - started, 2))


def report(device: str, checks: list[Check]) -> dict[str, Any]:
    """What gpu-acceptance.json holds."""
    return {
        "where": environment.where(device),
        "environment": environment.as_json(device),
        "checks": [*map(asdict, checks)],
    }


@dataclass(frozen=True)
class Bench:
    """What the checks share: the device, how many ranks there may be, a folder for models, and which nodes there are."""

    device: str
    ranks: int
    folder: Path
    nodes: hostfiles.Hosts = ()

    @property
    def gpu(self) -> bool:
        """Whether a GPU is examined."""
        return devices.is_gpu(self.device)

    @property
    def dtype(self) -> str:
        """The precision that models are measured in."""
        return "bfloat16" if self.gpu else "float32"

    def model(self, name: str) -> tuple[Path, Any]:
        """A model of random weights, made when it is first wanted, and its family."""
        from sparsebench.models.random_weights import write_random

        shape = (TRUE if self.gpu else TINY)[name]
        folder = self.folder / name
        if not folder.is_dir():
            write_random(shape.config, folder, shape.family, self.dtype)
        return folder, shape.family

    def setting(self, engine: str, ranks: int = 1, **more: Any) -> Setting:
        """How to measure on the device; short, unless ``more`` says otherwise."""
        usual: dict[str, Any] = {
            "workload": Workload(1, 32, 4),
            "samples": 4,
            "processes": 1,
            "phase_seconds": 1.0,
            "dtype": self.dtype,
        }
        return Setting(engine, ranks, **{**usual, "device": self.device, **more})

    def memory(self, name: str, engine: str, ranks: int = 1, folder: Path | None = None) -> MemoryResult:
        """Memory of a model, with parity and a decode with a cache on the way."""
        own, family = self.model(name)
        return measure_memory(folder or own, family, self.setting(engine, ranks))

    def latency(self, variant: Path, name: str, engine: str, **more: Any) -> LatencyResult:
        """Times of a variant beside the model."""
        folder, family = self.model(name)
        return measure_pair(folder, variant, family, self.setting(engine, **more))

    def added_up(self, ranks: int, hosts: hostfiles.Hosts = ()) -> list[dict[str, Any]]:
        """What each rank says that has added up numbers with the others: ``host``, ``gpu`` (its UUID) and ``bytes_s``."""
        setting = self.setting("deepspeed", ranks, hosts=hosts)
        spec = {"job": "try", "family": "encoder", "setting": asdict(setting)}
        told, limit = variables(setting), setting.timeout_seconds
        with NodeGroup(spec, hosts, told, limit) if hosts else RankGroup(spec, ranks, told, limit) as group:
            return [message for message in group.messages() if message["kind"] == "result"]

    def pruned(self, name: str, pattern: str, sparsity: float) -> Path:
        """The model after magnitude pruning."""
        from sparsebench.steps.contract import Context
        from sparsebench.steps.registry import combinations, kinds

        folder, family = self.model(name)
        out = self.folder / f"{name}-{pattern.replace(':', 'of')}"
        given = {"pattern": pattern} if ":" in pattern else {"sparsity": sparsity}
        (step,) = combinations("prune", "magnitude", given)
        failed: list[Any] = []

        def emit(_: Any, found: Any) -> None:
            failed.extend([found] if isinstance(found, SparsebenchError) else [])

        kinds()["prune"].load()(folder, {step: out}, Context(family), emit)
        for error in failed:
            raise error
        return out


def _several(bench: Bench) -> list[int]:
    found = [ranks for ranks in (2, 4, 8) if ranks <= bench.ranks]
    if not found:
        raise Skip(f"{bench.ranks} rank: it takes two")
    return found


def visible(bench: Bench) -> Seen:
    """The driver's count against torch's, and what else decides whether anything works."""
    if not bench.gpu:
        raise Skip("a CPU is examined")
    import torch

    listed, seen = len(devices.visible()), torch.cuda.device_count()
    shm = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    numbers = {
        "listed": listed, "seen": seen, "cuda": devices.cuda_version(), "cusparselt": torch.backends.cusparselt.is_available(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())), "nvcc": shutil.which("nvcc") or "", "shm_bytes": shm,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())), "names": list(devices.names()),
        **_driver(),
    }  # fmt: skip
    return listed == seen > 0, f"the driver lists {listed}, torch sees {seen}", numbers


def _driver() -> dict[str, Any]:
    """The driver's version and whether the GPU is parted (MIG), by NVML; why not where it does not say."""
    from sparsebench.energy import Unavailable, gpu, nvml

    found: dict[str, Any] = {}
    for key, ask in (
        ("driver", lambda library: library.nvmlSystemGetDriverVersion()),
        ("mig", lambda library: bool(library.nvmlDeviceGetMigMode(gpu(library, 0))[0])),
    ):
        try:
            with nvml() as library:
                found[key] = ask(library)
        except Unavailable as error:
            found[key] = str(error)
    return found


def throughput(bench: Bench) -> Seen:
    """A copy of 1 GiB and a bfloat16 product of 8192³, against what the card is said to do."""
    import torch

    side, size = (8192, GIB) if bench.gpu else (512, 2**26)
    peers = Peers(1, bench.gpu)
    a = torch.ones(size, dtype=torch.uint8, device=bench.device)
    b = torch.empty_like(a)
    x = torch.randn(side, side, device=bench.device).to(torch.bfloat16)
    copy, product = (_quickest(peers, step) for step in (lambda: b.copy_(a), lambda: x @ x))
    numbers = {"copy_bytes_s": 2 * size / copy, "product_flops": 2 * side**3 / product}
    detail = f"{2 * size / copy / 1e9:.0f} GB/s, {2 * side**3 / product / 1e12:.2f} TFLOP/s"
    nominal = next((NOMINAL[key] for key in NOMINAL if bench.gpu and key in devices.hardware(bench.device)), None)
    if nominal is None:
        return None, f"{detail}; nothing to hold it against", numbers
    shares = numbers["copy_bytes_s"] / nominal[0], numbers["product_flops"] / nominal[1]
    return shares[0] >= 0.6 and shares[1] >= 0.5, f"{detail}: {shares[0]:.0%} and {shares[1]:.0%} of nominal", numbers


def _quickest(peers: Peers, step: Callable[[], object]) -> float:
    return min(peers.timed(step)[1][0] for _ in range(5))


def clock(bench: Bench) -> Seen:
    """A step that sleeps, timed by this program and by another clock; without waiting for the GPU it must come out wrong."""
    import torch

    if not bench.gpu:
        started = time.monotonic()
        _, (wall, _) = Peers(1, False).timed(lambda: time.sleep(0.2))
        other = time.monotonic() - started
        return (
            abs(wall / other - 1) < 0.03,
            f"{wall * 1e3:.1f} ms, {other * 1e3:.1f} by another clock",
            {"ratio": wall / other},
        )
    cycles = 200_000_000
    torch.cuda._sleep(cycles)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def step() -> None:
        first.record()
        torch.cuda._sleep(cycles)
        last.record()

    _, (wall, _) = Peers(1, True).timed(step)
    torch.cuda.synchronize()
    events = first.elapsed_time(last) / 1e3
    _, (blind, _) = Peers(1, False).timed(step)
    torch.cuda.synchronize()
    numbers = {"wall_s": wall, "events_s": events, "without_waiting_s": blind}
    right = abs(wall / events - 1) < 0.03 and blind < 0.5 * events
    return (
        right,
        f"{wall * 1e3:.1f} ms, {events * 1e3:.1f} by the GPU's events, {blind * 1e3:.1f} without waiting",
        numbers,
    )


def peaks(bench: Bench) -> Seen:
    """So much taken in one phase and nothing in the next: the peaks say so."""
    import torch

    from sparsebench.runtime.memory import Meter

    size = GIB if bench.gpu else 2**28
    # What libraries hold on the GPU by now, such as cuBLAS, is not of the phase.
    before = torch.cuda.memory_allocated() if bench.gpu else 0
    meter = Meter(0, bench.device)
    with meter.phase("taken"):
        block = torch.ones(size, dtype=torch.uint8, device=bench.device)
        del block
    with meter.phase("nothing"):
        pass
    taken, nothing = (
        row.cuda_reserved_bytes if bench.gpu and row.phase == "nothing" else row.peak_bytes for row in meter.rows
    )
    taken, nothing = (taken or 0) - before, (nothing or 0) - before
    numbers = {"taken_bytes": taken, "nothing_bytes": nothing}
    room = 2 * 2**20 if bench.gpu else size // 16
    right = abs(taken - size) <= room and nothing < size // 2
    return right, f"{taken / 2**20:.1f} MiB of {size / 2**20:.0f}, then {nothing / 2**20:.1f}", numbers


def one_rank(bench: Bench) -> Seen:
    """Every family under ``hf`` and ``deepspeed``, a decode with a cache among its phases; outputs as the plain model's."""
    found = {
        f"{name} {engine}": bench.memory(name, engine)
        for name in ("deberta", "bert", "opt", "t5")
        for engine in ("hf", "deepspeed")
    }
    off = {name: one.parity.relative_l2 for name, one in found.items() if one.parity}
    kinds = {one.device for one in found.values()}
    right = (
        len(off) == len(found)
        and all(value <= 1e-4 for value in off.values())
        and kinds == {bench.device.partition(":")[0]}
    )
    return right, f"{len(found)} ran on {', '.join(kinds)}, at most {max(off.values()):.1e} off", off


def tensor_parallel(bench: Bench) -> Seen:
    """DeepSpeed at several ranks: the same output, each rank with its share of the blocks' matrices, and a GPU of its own."""
    numbers: dict[str, Any] = {}
    apart = alike = shared = True
    for ranks in _several(bench):
        gpus = {told["gpu"] for told in bench.added_up(ranks)}
        apart = apart and (not bench.gpu or len(gpus) == ranks)
    for name in ("opt", "t5", "deberta"):
        whole = bench.memory(name, "deepspeed")
        for ranks in _several(bench):
            found = bench.memory(name, "deepspeed", ranks)
            off = found.parity.relative_l2 if found.parity else math.inf
            share = _share(bench, name, whole, found)
            numbers |= {f"{name} x{ranks}": off, f"{name} x{ranks} share": share}
            alike, shared = alike and off <= 1e-4, shared and abs(share * ranks - 1) <= 0.1
    worst = max(value for key, value in numbers.items() if not key.endswith("share"))
    detail = f"at most {worst:.1e} off, {'' if shared else 'not '}a share of the blocks each"
    return alike and shared and apart, detail + ("" if apart else "; two ranks on one GPU"), numbers


def _share(bench: Bench, name: str, whole: MemoryResult, found: MemoryResult) -> float:
    """The share of the blocks' matrices that the fullest rank holds: all that it holds, less what every rank has whole."""
    from sparsebench.models.checkpoint import Checkpoint
    from sparsebench.models.topology import parts

    folder, family = bench.model(name)
    checkpoint = Checkpoint(folder)
    sizes = {key: info.nbytes for key, info in checkpoint.tensors.items()}
    cut = sum(sizes[one.name] for one in parts(checkpoint, family).values() if one.prunable)
    # Where several ranks share a model whose head is tied to the embedding, that gets a matrix of its own.
    tied = family != "encoder" and "lm_head.weight" not in sizes
    rows = checkpoint.config["vocab_size"]
    head = max(sizes[key] for key, info in checkpoint.tensors.items() if info.shape[0] == rows) if tied else 0
    one, several = (max(row.tensor_bytes for row in result.per_rank) for result in (whole, found))
    return 1 - (one + head - several) / cut


def zero3(bench: Bench) -> Seen:
    """ZeRO-3: the same output, and never half of the model on a GPU."""
    folder, _ = bench.model("opt")
    whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    numbers: dict[str, Any] = {}
    right = True
    for ranks in (1, 2)[: bench.ranks]:
        found = bench.memory("opt", "deepspeed-zero3", ranks)
        peak = max(row.cuda_allocated_bytes or 0 for row in found.per_rank)
        numbers |= {
            f"x{ranks} off": found.parity.relative_l2 if found.parity else None,
            f"x{ranks} share": peak / whole,
        }
        right = right and bool(found.parity and found.parity.relative_l2 <= 1e-4) and peak < 0.5 * whole
    return right, ", ".join(f"{key} {value:.2g}" for key, value in numbers.items()), numbers


def sparse(bench: Bench) -> Seen:
    """The sparse engine really uses a sparse kernel, and is right: 2:4 on a GPU, most weights zero on a CPU."""
    variant = bench.pruned("opt", "2:4" if bench.gpu else "unstructured", 0.9)
    found = bench.latency(variant, "opt", "sparse", workload=Workload(1, 128, 4))
    ratios = {one.phase: one.ratio for one in found.differences}
    used = ("2:4" in found.kernel) if bench.gpu else not found.kernel.startswith("dense")
    right = used and bool(found.parity and found.parity.relative_l2 <= found.parity.tolerance)
    return right, f"{found.kernel}; times over dense {', '.join(f'{k} {v:.2f}' for k, v in ratios.items())}", ratios


def quantized(bench: Bench) -> Seen:
    """Quantized weights run, or are refused by name before a rank starts."""
    from sparsebench.steps.quantize.grid import Quantize
    from sparsebench.steps.quantize.sweep import run

    folder, family = bench.model("llama")
    out = bench.folder / "int8"
    found: list[Any] = []
    run(folder, family, {Quantize("int8"): out}, None, lambda _, one: found.append(one))
    if isinstance(found[0], SparsebenchError):
        raise found[0]
    try:
        ran = bench.memory("llama", "hf", folder=out)
    except UnsupportedError as error:
        return "int8" in error.message, f"refused: {error.message}", {}
    return "int8" in ran.kernel, f"runs: {ran.kernel}", {}


def against_itself(bench: Bench) -> Seen:
    """A model against its own copy: no difference, and little noise; on a GPU each token is one recorded graph."""
    folder, _ = bench.model("opt")
    work = {"workload": Workload(1, 32, 16), "samples": 24, "phase_seconds": 4.0 if bench.gpu else 1.0}
    found = bench.latency(folder, "opt", "hf", **work)
    decode = next(one for one in found.differences if one.phase == "decode")
    numbers = {"ratio": decode.ratio, "low": decode.low, "high": decode.high}
    detail = f"{decode.ratio:.4f} [{decode.low:.4f}, {decode.high:.4f}], {found.kernel}"
    if not bench.gpu:  # a CPU that others use as well says nothing of the program
        return None, detail, numbers
    quiet = decode.low <= 1 <= decode.high and decode.high - decode.low <= 0.03
    return quiet and GRAPH in found.kernel, detail, numbers


def killed(bench: Bench) -> Seen:
    """A rank that is killed while another waits for it is named at once, and nothing is left."""
    ranks = _several(bench)[0]
    folder, family = bench.model("opt")
    setting = bench.setting("deepspeed", ranks, phase_seconds=2.0, samples=10_000)
    spec = {
        "job": "latency", "dense": str(folder), "variants": [(0, str(folder))], "baseline": False, "family": family,
        "setting": asdict(setting),
    }  # fmt: skip
    before = devices.free_memory(bench.device)
    sent = 0.0
    try:
        with RankGroup(spec, ranks, variables(setting), setting.timeout_seconds) as group:
            for message in group.messages():
                if message["kind"] == "phase" and not sent:
                    sent = time.monotonic()
                    os.kill(group.processes[1].pid, signal.SIGKILL)
    except MeasureError as error:
        took = time.monotonic() - sent
        after = devices.free_memory(bench.device)
        named = f"rank 1 of {ranks} died of SIGKILL" in error.message
        freed = before is None or after is None or after > before - GIB // 4  # a process that is left holds more
        return named and took <= 10 and freed, f"{error.message.splitlines()[0]}, after {took:.1f} s", {"seconds": took}
    return False, "nobody noticed", {}


def too_large(bench: Bench) -> Seen:
    """What cannot fit is refused before it starts, with a way out: on a GPU, more ranks. A pair that cannot is timed apart."""
    folder, family = bench.model("opt")
    if not bench.gpu:
        return _refused(folder, family, bench.setting("hf", workload=Workload(10**8, 32, 4)), "ranks")
    import torch

    torch.cuda.empty_cache()
    free, need = devices.free_memory(bench.device), working_bytes(folder, bench.setting("hf"))
    if free is None:
        raise Skip("the driver does not say what is free")
    taken = torch.empty(int(free - 0.5 * need), dtype=torch.uint8, device="cuda")
    passed, detail, _ = _refused(folder, family, bench.setting("hf"), "more ranks")
    del taken
    torch.cuda.empty_cache()
    taken = torch.empty(int(free - 1.9 * need), dtype=torch.uint8, device="cuda")
    baseline = bench.latency(folder, "opt", "hf").baseline
    del taken
    torch.cuda.empty_cache()
    return bool(passed) and baseline == "unpaired", f"{detail}; a pair that does not fit is {baseline}", {}


def _refused(folder: Path, family: Any, setting: Setting, words: str) -> Seen:
    try:
        measure_memory(folder, family, setting)
    except MeasureError as error:
        return words in (error.hint or ""), f"{error.message}; {error.hint}", {}
    return False, "it was measured", {}


def scoring(bench: Bench) -> Seen:
    """Fifty questions on the device and on the CPU: the same log-likelihoods, and on a GPU ten times as fast."""
    from sparsebench.benchmarks.causal import Scorer
    from sparsebench.models.load import load_model

    folder, _ = bench.model("llama")
    words = tokenizer(WORDS)
    asked = [
        SimpleNamespace(
            args=(" ".join(f"w{(7 * n + k) % WORDS}" for k in range(24)), f" w{(n + 5 * answer) % WORDS} w3")
        )
        for n in range(50)
        for answer in range(4)
    ]
    found, seconds = {}, {}
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model that is loaded already
    for device in ("cpu", bench.device):
        share = bench.gpu or device not in found  # on a CPU the two ways are compared
        scorer: Any = Scorer(
            pretrained=load_model(folder, "decoder", device=device),
            tokenizer=words,
            backend="causal",
            batch_size=16,
            trust_remote_code=False,
        )
        scorer.share = share
        started = time.perf_counter()
        found[device if share else "stock"] = [value for value, _ in scorer.loglikelihood(asked)]
        seconds[device if share else "stock"] = time.perf_counter() - started
    one, other = found.values()
    off = max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))
    first, last = seconds.values()
    numbers = {"relative": off, "speedup": first / last}
    right = off <= 0.01 and (not bench.gpu or first / last >= 10)
    return right, f"at most {off:.1e} apart, {first / last:.1f} times as fast", numbers


def pruning(bench: Bench) -> Seen:
    """SparseGPT of one layer on the device, against the CPU's (there, against its own in float64): the same weights go."""
    import torch

    rows, width = (2048, 2048) if bench.gpu else (96, 128)
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(rows, width, generator=draw, device="cpu")
    read = torch.randn(4 * width, width, generator=draw, device="cpu") @ torch.randn(
        width, width, generator=draw, device="cpu"
    )
    plain = _sparsegpt(weights, read, "cpu", None if bench.gpu else torch.float64)
    ours = _sparsegpt(weights, read, bench.device, None)
    same = float(((plain == 0) == (ours == 0)).double().mean())
    error = [float(((weights - one).double() @ read.double().T).norm()) for one in (plain, ours)]
    numbers = {"same": same, "worse": error[1] / error[0] - 1}
    return (
        same >= 0.995 and numbers["worse"] <= 0.01,
        f"{same:.3%} of the mask alike, error {numbers['worse']:+.2%}",
        numbers,
    )


def _sparsegpt(weights: torch.Tensor, read: torch.Tensor, device: str, dtype: torch.dtype | None) -> torch.Tensor:
    from sparsebench.models.inputs import Inputs
    from sparsebench.steps.prune.contract import Layer, Quota, Solution
    from sparsebench.steps.prune.methods.sparsegpt import solve

    rows = read.to(device, dtype or read.dtype)
    inputs = Inputs(len(rows), rows.square().sum(0), rows.T @ rows)
    ((found,),) = solve([Layer("layer", weights.to(device), 0, inputs)], [Quota(0.5, "layer")], dtype)
    assert isinstance(found, Solution)
    return found.weights.cpu()


def energy(bench: Bench) -> Seen:
    """Five seconds of load: the counter's joules are the power that the card shows, times the time."""
    if not bench.gpu:
        raise Skip("a CPU is examined, whose counter few may read")
    import torch

    from sparsebench.energy import Nothing, Unavailable, gpu, meter, nvml

    counter = meter("cuda:0")
    if isinstance(counter, Nothing):
        raise Skip(counter.source)
    x = torch.randn(8192, 8192, device="cuda").to(torch.bfloat16)
    powers, started = [], time.perf_counter()
    counter.joules()
    try:
        while (took := time.perf_counter() - started) < 5:
            x = (x @ x).clamp_(-1, 1)
            torch.cuda.synchronize()
            with nvml() as library:
                powers.append(library.nvmlDeviceGetPowerUsage(gpu(library, 0)) / 1e3)
    except Unavailable as error:
        raise Skip(str(error)) from error
    joules = counter.joules() or 0.0
    wanted = took * sum(powers) / len(powers)
    return (
        abs(joules / wanted - 1) <= 0.15,
        f"{joules:.0f} J, {wanted:.0f} by power and time",
        {"ratio": joules / wanted},
    )


def several_nodes(bench: Bench) -> Seen:
    """One rank a slot of the hostfile: they add up right, each on a GPU of its own, and say how fast."""
    if not bench.nodes:
        raise Skip("one machine is examined: name others with --hostfile")
    ranks = sum(slots for _, slots in bench.nodes)
    found = bench.added_up(ranks, hostfiles.share(bench.nodes, ranks))
    places = [(told["host"], told["gpu"]) for told in found]
    numbers = {"bytes_s": min(told["bytes_s"] for told in found), "places": places}
    apart = not bench.gpu or len({gpu for _, gpu in places}) == ranks
    told = ", ".join(f"{host} {gpu}".rstrip() for host, gpu in places)
    return len(found) == ranks and apart, f"{numbers['bytes_s'] / 1e9:.2f} GB/s on {told}", numbers


CHECKS: dict[str, Callable[[Bench], Seen]] = {
    "the driver and torch see the same GPUs": visible,
    "a copy and a product are as fast as the card": throughput,
    "time is measured right": clock,
    "memory is measured right": peaks,
    "engines at one rank": one_rank,
    "deepspeed at several ranks": tensor_parallel,
    "ZeRO-3 at one rank and two": zero3,
    "the sparse engine": sparse,
    "quantized weights": quantized,
    "a model against itself": against_itself,
    "a killed rank is named": killed,
    "what does not fit is refused": too_large,
    "scoring": scoring,
    "pruning": pruning,
    "energy": energy,
    "several nodes": several_nodes,
}
"""By what is checked, in the order of their numbers."""
