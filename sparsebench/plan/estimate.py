"""How long jobs take: the start of a process, then work at the speed of its kind. Finished jobs correct both.

The work of a cell is tokens × parameters: how many tokens go through the model, or 1 where its weights are only read.
Starts and speeds are in ``stages``, fitted to the published records of two server cores. Half of these jobs took at
most 1.6 times as long or as short; a busy machine makes as much of a difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparsebench import benchmarks, devices
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.jobs import alone, calculates, ranks_of
from sparsebench.plan.stages import MAKE, PROCESSES
from sparsebench.steps.calibration import LENGTH

GPU_SPEEDUP = 300.0
"""How many times as fast as a CPU a GPU is: a guess for an H100, measured on none."""
FILE_TOKENS = 1000
"""What it takes to read the parent and to write one variant, counted in tokens."""
DOCUMENTS, PROMPT = 2000, 40
"""Documents of a benchmark, and tokens of a document, where these are not known."""
READINGS = 2
"""How often models other than decoders read a document: in parts, once for each answer, or with masks."""
NEW_TOKEN = 10
"""A generated token takes as long as this many of a prompt: each of them reads all weights."""
PASSAGE = 512
"""The most tokens of a passage that encoders and encoder-decoders read."""
STEPS = 8
"""The steps in which a process times a phase of a pair, warm-up included."""
DAMPING_SECONDS = 30.0
"""Jobs of each pace are credited with this many seconds on schedule: the first, which fetch and compile, say little."""
SILENCE_SECONDS = 3600.0
SILENCE_ESTIMATES = 10
"""A job may be silent and idle for SILENCE_SECONDS or SILENCE_ESTIMATES times its estimate, whichever is longer."""


@dataclass(frozen=True)
class ModelSize:
    """The size of a model: ``parameters`` in all, and ``bytes`` on disk in the working precision.

    ``prunable`` is the share of prunable parameters, None if unknown. ``device`` is where the model will run.
    """

    parameters: int
    bytes: int
    prunable: float | None = None
    device: str = "cpu"


def tokens(cell: Cell) -> float:
    """Return how many tokens go through the model for a cell."""
    asked = cell.settings
    if cell.stage == MAKE.name:
        step, length = cell.variant.steps[-1], asked.get("length") or LENGTH
        text = asked.get("samples", 0) * (length if cell.variant.family == "decoder" else min(length, PASSAGE))
        return step.settings.forward_tokens(text)
    if cell.stage == "outputs":
        return float(3 * asked["samples"] * asked["length"])
    if cell.stage == "benchmarks":
        return 0.0 if cell.variant.heuristic else (documents(cell) or DOCUMENTS) * _document_tokens(cell)
    if cell.stage == "latency":
        load = asked["workload"]
        request = load["batch"] * (2 * load["prompt"] + (load["generate"] + 1) * NEW_TOKEN)
        return float(STEPS * asked["processes"] * request)
    return 1.0


def documents(cell: Cell) -> int:
    """Return how many documents a benchmark cell scores, as far as that is known before the run (0: unknown)."""
    task = benchmarks.benchmark_of(cell.settings)
    size = (task and task.n) or cell.documents
    limit = (cell.settings.get("limit") or 0) * (task.parts if task else 1)
    return min(size, limit) if size and limit else size or limit


def _document_tokens(cell: Cell) -> int:
    """Return the tokens that are read of a document, its few-shot examples and its answers."""
    task, examples = benchmarks.benchmark_of(cell.settings), cell.settings.get("num_fewshot") or 0
    window = (task and task.tokens) or 0
    if task and task.adapter == "pseudo_perplexity":
        return window * window  # each token is masked once
    if window and task and task.adapter != "generation":
        return window
    readings = 1 if cell.variant.family == "decoder" else READINGS
    return readings * ((task and task.prompt) or PROMPT) * (1 + examples) + NEW_TOKEN * window


def job_seconds(job: Job, sizes: Mapping[str, ModelSize]) -> float:
    """Return a job's seconds, start included."""
    kind, size = PROCESSES[job.kind], sizes[job.variants[0].model]
    faster = GPU_SPEEDUP if devices.is_gpu(size.device) and calculates(job) else 1.0
    work = sum(map(tokens, job.making)) or 1.0  # what prepares a model has no cells
    if kind is MAKE:
        work += FILE_TOKENS * len(job.makes)
    return kind.start_seconds + work * size.parameters / (kind.speed * faster)


def silence_seconds(job: Job, sizes: Mapping[str, ModelSize]) -> float:
    """Return for how many seconds a job may be silent and idle before it is ended."""
    return max(SILENCE_SECONDS, SILENCE_ESTIMATES * job_seconds(job, sizes))


def pace(job: Job) -> str:
    """Return a key for jobs whose estimates err by the same factor: their kind, and for makes the step that they do.

    That a rounding took less time than expected says nothing about a training.
    """
    last = [variant.steps[-1] for variant in job.makes if variant.steps][-1:]
    return " ".join([job.kind, *(f"{step.verb} {step.name}" for step in last)])


class Estimate:
    """Estimates for models of ``sizes``, corrected by what finished jobs of the same ``pace`` took."""

    def __init__(self, sizes: Mapping[str, ModelSize]) -> None:
        self.sizes = dict(sizes)
        self.taken: dict[str, float] = defaultdict(float)
        self.foreseen: dict[str, float] = defaultdict(float)

    def learn(self, job: Job, seconds: float) -> None:
        """Note that a job took ``seconds``."""
        self.taken[pace(job)] += seconds
        self.foreseen[pace(job)] += job_seconds(job, self.sizes)

    def ratio(self, kind: str) -> float:
        """Return what jobs of a pace took, divided by their estimates."""
        return (self.taken[kind] + DAMPING_SECONDS) / (self.foreseen[kind] + DAMPING_SECONDS)

    def seconds(self, job: Job) -> float:
        """Return a job's seconds."""
        return job_seconds(job, self.sizes) * self.ratio(pace(job))


def at_once(job: Job, slots: int, gpus: int = 0) -> int:
    """Return how many jobs like this one run at once in ``run/local``.

    A job that must be alone runs alone. Where the run has ``gpus``, jobs that calculate need one for each rank. Others
    run in ``slots``.
    """
    if alone(job, bool(gpus)):
        return 1
    return max(1, min(slots, gpus // ranks_of(job))) if gpus and calculates(job) else slots


def wall_seconds(jobs: Iterable[Job], estimate: Estimate, slots: int, gpus: int = 0) -> dict[str, float]:
    """Return by kind of job the seconds that ``jobs`` take, as many at once as there is room for."""
    totals: dict[str, float] = defaultdict(float)
    for job in jobs:
        totals[job.kind] += estimate.seconds(job) / at_once(job, slots, gpus)
    return totals
