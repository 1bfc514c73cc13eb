"""The settings and results of runtime measurements; ``dataclasses.asdict`` makes JSON of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsebench import devices
from sparsebench.manifest.names import Family

Side = Literal["dense", "variant"]
Baseline = Literal["paired", "unpaired"]
PARITY_BLOCKS = 4
"""The most blocks of each stack in the copies whose outputs are compared."""


@dataclass(frozen=True)
class Workload:
    """One shape of request: ``batch`` sequences of ``prompt`` tokens, then ``generate`` new tokens each."""

    batch: int = 1
    prompt: int = 128
    generate: int = 16


@dataclass(frozen=True)
class Setting:
    """How to measure.

    - ``dtype``: float32, bfloat16, float16 or ``auto`` (the checkpoint's).
    - ``samples``: wanted per phase and side, from all ``processes`` together; each process loads both models anew.
    - ``threads``: per rank; default: a node's usable cores divided by its ranks.
    - ``phase_seconds``: caps the sampling of one phase, of both sides and all processes together, even if that leaves
      fewer samples.
    - ``timeout_seconds``: a group silent for this long is ended.
    - ``nodes``: the addresses of the nodes of Ray's placement group ``group`` (as ``ADDRESS/NAME``), with equally many
      ranks on each, the first on this machine; default: all ranks are on this machine.
    - ``forced``: an engine that skips zeros uses its kernels for every layer, however few zeros that has.
    - ``device``: ``cpu``, ``cuda``, ``cuda:N`` for one rank, or ``auto``: what torch finds where the ranks run.
    """

    engine: str
    ranks: int
    workload: Workload
    dtype: str = "auto"
    samples: int = 24
    threads: int | None = None
    phase_seconds: float = 4.0
    timeout_seconds: float = 900.0
    nodes: tuple[str, ...] = ()
    group: str = ""
    processes: int = 5
    forced: bool = False
    device: str = "auto"

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was named; for ``auto`` this is false, as only the ranks know."""
        return devices.is_gpu(self.device)

    @property
    def ranks_per_node(self) -> int:
        """The number of ranks that share a machine."""
        return self.ranks // max(1, len(self.nodes))

    def ranks_on(self, index: int) -> range:
        """Return the numbers of the ranks on one of the ``nodes``; on this machine, where there are none, at index 0."""
        return range(index * self.ranks_per_node, (index + 1) * self.ranks_per_node)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Setting:
        """Return the setting that JSON of its ``asdict`` describes."""
        return cls(**{**content, "workload": Workload(**content["workload"]), "nodes": tuple(content["nodes"])})


@dataclass(frozen=True)
class RankJob:
    """What the ranks of one group do, with the models in these folders.

    - ``add up``: one tensor, without a model.
    - ``latency``: time each of ``variants`` beside ``dense``, or by itself where that is None, in each of the numbered
      ``processes``; ``baseline``: the variant is the dense model.
    - ``memory``: measure the peak memory of the one variant.
    """

    kind: Literal["add up", "latency", "memory"]
    family: Family
    variants: tuple[str, ...] = ()
    dense: str | None = None
    baseline: bool = False
    processes: tuple[int, ...] = (0,)

    @property
    def folders(self) -> list[Path]:
        """The folders of the job's models, the dense one first."""
        return [Path(name) for name in (self.dense, *self.variants) if name]

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> RankJob:
        """Return the job that JSON of its ``asdict`` describes."""
        return cls(**{**content, "variants": tuple(content["variants"]), "processes": tuple(content["processes"])})


@dataclass(frozen=True)
class TimingSample:
    """One timed step: wall seconds of the slowest rank, CPU seconds of all threads of all ranks; in which process.

    ``block`` is the number of its pair of blocks, the same on both sides, and ``index`` its place in the block.
    """

    phase: str
    side: Side
    block: int
    index: int
    wall_s: float
    cpu_s: float
    process: int = 0


@dataclass(frozen=True)
class PhaseSummary:
    """One phase of one side, in seconds.

    ``median_s`` is the geometric mean over processes of their medians, ``low_s`` to ``high_s`` its 95% interval,
    ``mad_s`` the MAD and ``n`` the number of samples, ``cpu_s`` the median CPU time. ``steady`` is false where most
    processes' warm-up did not settle, or the halves of their samples differ by more than 2% on average (for one
    process: where neither its warm-up settled nor its halves agree), but true where each of several processes took only
    one step. ``p90_s`` is None below 64 samples. ``energy_j`` are joules per step, the mean over processes; None where
    the machine has no counter.
    """

    phase: str
    side: Side
    median_s: float
    low_s: float
    high_s: float
    mad_s: float
    n: int
    steady: bool
    cpu_s: float
    p90_s: float | None
    energy_j: float | None = None


@dataclass(frozen=True)
class PhaseDifference:
    """Variant over dense for one phase, with a 95% interval: below 1 the variant is faster.

    ``pairs`` counts the pairs of blocks behind it, 0 where the two did not run together. The interval is that of the
    ratios of ``processes``; with one process, of its pairs. ``within_sd`` and ``between_sd`` are standard deviations of
    the ratio's logarithm: of a pair from its process, and of processes from each other beyond what pairs explain. They
    are None with one process.
    """

    phase: str
    ratio: float
    low: float
    high: float
    pairs: int
    processes: int = 1
    within_sd: float | None = None
    between_sd: float | None = None


@dataclass(frozen=True)
class Parity:
    """The engine's output against the plain Hugging Face model's: ‖engine - plain‖₂ / ‖plain‖₂.

    ``blocks`` is the number of transformer blocks of the compared copy; ``wraps_only`` says that the engine runs the
    same modules as the plain model, so that agreement is no evidence.
    """

    relative_l2: float
    tolerance: float
    dtype: str
    blocks: int
    wraps_only: bool


@dataclass(frozen=True)
class Machine:
    """The state of the machine at one moment; ``governor`` is empty and ``mhz`` None where it cannot be read.

    ``cpu_s`` are the seconds of all processors since boot, ``stolen_s`` those that a hypervisor gave to others.
    """

    load: float
    cores: int
    affinity: int
    threads: int
    governor: str
    mhz: float | None = None
    cpu_s: float | None = None
    stolen_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """What every measurement of a running model states: how it ran, the check of its outputs, and the machine around it."""

    engine: str
    kernel: str
    ranks: int
    threads: int
    device: str
    dtype: str
    parity: Parity | None
    before: Machine
    after: Machine
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LatencyResult(EngineResult):
    """Latency of one variant beside its dense model (``paired``: in the same processes, in alternating blocks).

    ``placement`` says what decides where in memory a model is, and on which processors it runs. ``stolen`` is the share
    of the processors' time that a hypervisor gave to others meanwhile, None where the system does not say.
    ``energy_source`` names the counters behind the phases' ``energy_j``, or says why there are none.
    ``read_bytes_per_second`` is the speed at which the ranks together read memory, the median of the processes.
    """

    baseline: Baseline
    phases: tuple[PhaseSummary, ...]
    differences: tuple[PhaseDifference, ...]
    samples: tuple[TimingSample, ...]
    energy_source: str = ""
    placement: str = ""
    stolen: float | None = None
    read_bytes_per_second: float | None = None


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank in one phase, in bytes.

    ``peak_rss_bytes`` is VmHWM, reset before the phase. ``peak_bytes`` is that less ``baseline_bytes``, the RSS before
    loading; on a GPU it is the peak that torch allocated there. ``anon_bytes`` and ``pss_bytes`` (with the processes
    that the rank started) are taken at the end of the phase. ``tensor_bytes`` are parameters and buffers, each storage
    once. ``cache_bytes`` are the keys and values, or states, at the end of the phase; None where they are unknown, as in
    ``generate``. The CUDA fields are None on a CPU: the peaks that torch allocated and reserved, and what the process holds at
    the end of the phase by NVML, or, where NVML does not say, all that is taken of the GPU.
    """

    rank: int
    phase: str
    peak_rss_bytes: int
    peak_bytes: int
    anon_bytes: int
    pss_bytes: int | None
    tensor_bytes: int
    baseline_bytes: int
    cache_bytes: int | None = None
    cuda_allocated_bytes: int | None = None
    cuda_reserved_bytes: int | None = None
    cuda_process_bytes: int | None = None


@dataclass(frozen=True)
class PhaseMemory:
    """``peak_bytes`` of one phase, summed over the ranks."""

    phase: str
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryResult(EngineResult):
    """Peak memory of one variant alone.

    ``peak_bytes`` is the largest of the phases that compute, summed over ranks; loading is a phase of its own, because
    the mapped file counts there as resident.
    """

    source: str
    peak_bytes: int
    phases: tuple[PhaseMemory, ...]
    per_rank: tuple[RankMemory, ...]
