"""How large models are, and how long jobs take: the start of a process, then work at the speed of its kind.

The work of a cell is tokens × parameters: how many tokens go through the model, or 1 where its weights are only read.
Starts and speeds are in ``stages``, fitted to the published records of two server cores; finished jobs correct both. Half
of these jobs took at most 1.6 times as long or as short; a busy machine makes as much of a difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench import devices
from sparsebench.errors import ModelError
from sparsebench.manifest.schema import ManifestModel
from sparsebench.models.files import precision
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import dimensions
from sparsebench.models.shape.topology import prunable_share
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.jobs import ranks_of, runs_alone, uses_device
from sparsebench.plan.stages import JOB_KINDS, MAKE, STAGES
from sparsebench.sources import KNOWN
from sparsebench.steps.calibration import LENGTH

GPU_SPEEDUP = 300.0
"""How many times as fast as a CPU a GPU is: a guess for an H100, measured on none."""
FILE_TOKENS = 1000
"""What it takes to read the parent and to write one variant, counted in tokens."""
PASSAGE_TOKENS = 512
"""The most tokens of a passage that encoders and encoder-decoders read."""
DAMPING_SECONDS = 30.0
"""Jobs of each pace are credited with this many seconds on schedule: the first, which fetch and compile, say little."""
SILENCE_SECONDS = 3600.0
SILENCE_ESTIMATES = 10
"""A job may be silent and idle for SILENCE_SECONDS or SILENCE_ESTIMATES times its estimate, whichever is longer."""


@dataclass(frozen=True)
class ModelSize:
    """The size of a model: ``parameters`` in all, and ``bytes`` on disk in the working precision.

    ``prunable`` is the share of prunable parameters, None if unknown.
    """

    parameters: int
    bytes: int
    prunable: float | None = None


def tokens(cell: Cell) -> float:
    """Return how many tokens go through the model for a cell: the parent, where a variant is made."""
    if cell.stage != MAKE.name:
        return STAGES[cell.stage].tokens(cell)
    length = cell.settings.get("length") or LENGTH
    used = length if cell.variant.family == "decoder" else min(length, PASSAGE_TOKENS)
    return cell.variant.steps[-1].settings.forward_tokens(cell.settings.get("samples", 0) * used)


def job_seconds(job: Job, sizes: Mapping[str, ModelSize], device: str = "cpu") -> float:
    """Return a job's seconds on a device, start included."""
    kind, size = JOB_KINDS[job.kind], sizes[job.variants[0].model]
    speedup = GPU_SPEEDUP if devices.is_gpu(device) and uses_device(job) else 1.0
    work = sum(map(tokens, job.making_cells)) or 1.0  # what prepares a model has no cells
    if kind is MAKE:
        work += FILE_TOKENS * len(job.makes)
    return kind.start_seconds + work * size.parameters / (kind.speed * speedup)


def silence_seconds(job: Job, sizes: Mapping[str, ModelSize], device: str = "cpu") -> float:
    """Return for how many seconds a job may be silent and idle before it is ended."""
    return max(SILENCE_SECONDS, SILENCE_ESTIMATES * job_seconds(job, sizes, device))


def pace_of(job: Job) -> str:
    """Return a key for jobs whose estimates err by the same factor: their kind, and for makes the step that they do.

    That a rounding took less time than expected says nothing about a training.
    """
    last_steps = [variant.steps[-1] for variant in job.makes if variant.steps]
    return f"{job.kind} {last_steps[-1].verb} {last_steps[-1].name}" if last_steps else job.kind


class Estimate:
    """Estimates for models of ``sizes`` on a device, corrected by what finished jobs of the same pace took."""

    def __init__(self, sizes: Mapping[str, ModelSize], device: str = "cpu") -> None:
        self.sizes, self.device = dict(sizes), device
        self.seconds_taken: dict[str, float] = defaultdict(float)
        self.seconds_foreseen: dict[str, float] = defaultdict(float)

    def learn(self, job: Job, seconds: float) -> None:
        """Note that a job took ``seconds``."""
        self.seconds_taken[pace_of(job)] += seconds
        self.seconds_foreseen[pace_of(job)] += self.uncorrected(job)

    def ratio(self, pace: str) -> float:
        """Return what jobs of a pace took, divided by their estimates."""
        return (self.seconds_taken[pace] + DAMPING_SECONDS) / (self.seconds_foreseen[pace] + DAMPING_SECONDS)

    def uncorrected(self, job: Job) -> float:
        """Return a job's seconds, whatever finished jobs took."""
        return job_seconds(job, self.sizes, self.device)

    def seconds(self, job: Job) -> float:
        """Return a job's seconds."""
        return self.uncorrected(job) * self.ratio(pace_of(job))


def concurrent_jobs(job: Job, slots: int, gpus: int = 0) -> int:
    """Return how many jobs like this one run at once in ``run/local``.

    A job that must be alone runs alone. Where the run has ``gpus``, jobs that calculate need one for each rank. Others
    run in ``slots``.
    """
    if runs_alone(job, bool(gpus)):
        return 1
    return max(1, min(slots, gpus // ranks_of(job))) if gpus and uses_device(job) else slots


def wall_seconds(jobs: Iterable[Job], estimate: Estimate, slots: int, gpus: int = 0) -> dict[str, float]:
    """Return by kind of job the seconds that ``jobs`` take, as many at once as there is room for."""
    totals: dict[str, float] = defaultdict(float)
    for job in jobs:
        totals[job.kind] += estimate.seconds(job) / concurrent_jobs(job, slots, gpus)
    return totals


WEIGHT_BYTES = {"bfloat16": 2, "float16": 2}
"""Bytes of a weight, where they are not 4."""
MOST_PARAMETERS = 100_000_000_000_000
"""The most parameters that are believed; the largest models have a hundredth of these."""
UNKNOWN_PARAMETERS = 500_000_000
UNGATED = ("bert", "roberta", "gpt_neox", "deberta-v2", "opt", "starcoder2")
"""Model types whose feed-forward part has no gate, whatever their activation function."""
PACKAGED_PARAMETERS = {"gguf": 160_000_000, "other": 25_000_000}
"""The parameters assumed for a model in a package that has not been read yet. A package index takes files up to 100 MB
by default: about 160M weights of 4 bits, or 25M of 32."""


def model_size(model: ManifestModel, config: Mapping[str, Any] | None, folder: Path) -> ModelSize:
    """Return the size of a model in its working precision: counted in the prepared ``folder``, else from the config.

    Without either it is a guess. Raises ModelError for a config with sizes that no model has.
    """
    try:
        checkpoint = Checkpoint(folder)
        tensors = checkpoint.tensors.values()
        share = prunable_share(checkpoint, model.family)
        return ModelSize(sum(tensor.numel for tensor in tensors), sum(tensor.nbytes for tensor in tensors), share)
    except ModelError:
        pass
    count = parameters(config) if config else _known_parameters(model.source)
    if not 0 < count <= MOST_PARAMETERS or (config and not 0 <= _table_parameters(config) <= count):
        problem = f"{model.name}: by its config.json it has {count:,} parameters"
        raise ModelError(problem, "correct its sizes (hidden_size, num_hidden_layers, vocab_size …), or fetch it again")
    dtype = model.dtype if model.dtype != "auto" else precision.of_config(config or {}) or "float32"
    prunable = 1 - _table_parameters(config) / count if config else None
    return ModelSize(count, count * WEIGHT_BYTES.get(dtype, 4), prunable)


def _known_parameters(source: str) -> int:
    for known in KNOWN.values():
        if source == known.source:
            return known.parameters
    if not source.startswith("wheel:"):
        return UNKNOWN_PARAMETERS
    return PACKAGED_PARAMETERS["gguf" if ".gguf" in source.lower() else "other"] * max(1, source.count("=="))


def parameters(config: Mapping[str, Any]) -> int:
    """Return a transformer's parameters from its config.json, within about 10%: embeddings, attention and feed-forward."""
    size = dimensions(config)
    attention = size.hidden * size.head_size * (2 * size.heads + 2 * size.key_heads)
    activation = str(config.get("feed_forward_proj") or config.get("hidden_act") or "")
    gated = activation.startswith("gated") or activation in ("silu", "swiglu", "gelu_pytorch_tanh")
    gated = gated and str(config.get("model_type")) not in UNGATED
    forward = size.hidden * size.inner * (3 if gated else 2) * size.experts
    return (
        _table_parameters(config)
        + size.layers * (attention + forward)
        + size.decoder_layers * (2 * attention + forward)
    )


def _table_parameters(config: Mapping[str, Any]) -> int:
    """Return the parameters of the embeddings and of an untied output head: nearly all that is not prunable."""
    size = dimensions(config)
    return size.vocabulary * size.hidden * (2 if config.get("tie_word_embeddings") is False else 1)
