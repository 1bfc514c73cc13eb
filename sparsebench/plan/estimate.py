"""Rough estimates of time and size before a run, which the run refines by what it shows.

The constants were measured on two server cores. On a faster machine, the first jobs correct the estimates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparsebench import benchmarks, devices, environment
from sparsebench.plan.cells import Cell, Job
from sparsebench.runtime.latency import MIN_PAIRS, WARM_SECONDS, WARM_STEPS
from sparsebench.runtime.results import Setting
from sparsebench.steps.calibration import LENGTH
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import kinds

SWEEP_BYTES = 150e6
ASSESS_BYTES = 60e6
LOAD_BYTES = 300e6
FLOPS = {"bfloat16": 200e9, "float16": 50e9, "float32": 80e9, "auto": 80e9}
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4, "auto": 4}
EMULATED_FLOPS = 10e9
GPU_FLOPS = {"bfloat16": 150e12, "float32": 20e12}
GPU_READ_BYTES = 1e12
"""SWEEP_BYTES, ASSESS_BYTES and LOAD_BYTES are bytes per second through a sweep, through structure and storage, and
into an engine. FLOPS are floating-point operations per second, WIDTH is bytes per weight. The two GPU constants,
operations per second and bytes read per second for a new token, are a guess for an H100 at small batches, measured on
none."""

DOCUMENT_TOKENS = {"decoder": 40, "encoder": 50, "encoder-decoder": 120}
"""Tokens that a document costs on average over all its requests; a common beginning of the requests counts once."""
READINGS = 3
"""How often an encoder-decoder reads a document's prompt: once for each of its answers."""
DEFAULT_DOCUMENTS = 2000
MASKED_TOKENS = 12
"""Tokens of a document's answers, each masked once."""
PASSAGE_TOKENS, LONGEST_PASSAGE = 130, 512
"""Tokens of an average passage of BoolQ, of which encoders read one per sample, and of the longest of 128 passages, to
which all are padded."""
SOLVE_SECONDS = 3e-8
"""Seconds per parameter to find one version's weights."""
WARM_UP_STEPS = 6
"""Steps that warming up one side of a pair typically takes."""
READ_BYTES = 8e9
"""Bytes of weights that a CPU reads per second for new tokens."""
ENCODER_SHARE, CROSS_SHARE = 0.45, 0.1
"""The share of an encoder-decoder that is its encoder, and the share that reads the encoder's output."""


@dataclass(frozen=True)
class ModelSize:
    """The size of a model: ``parameters`` in all, and ``bytes`` on disk in the working precision.

    ``prunable`` is the share of prunable parameters, None if unknown. ``device`` is where the model will run,
    ``blocks`` the number of blocks in all its stacks. ``active`` are the parameters that one token uses in a mixture of
    experts, 0 where it uses all. ``longest`` is the most tokens of an input, None if the config does not state it.
    """

    parameters: int
    bytes: int
    prunable: float | None = None
    device: str = "cpu"
    blocks: int = 12
    active: int = 0
    longest: int | None = None

    @property
    def per_token(self) -> int:
        """The parameters that one token uses, which decide the work; all parameters decide memory and disk."""
        return self.active or self.parameters


def comparing(cell: Cell, size: ModelSize) -> float:
    """Return the seconds to run texts through the dense model once and through the variant twice."""
    flops = 3 * cell.settings["samples"] * cell.settings["length"] * 2 * size.per_token
    return 2 * _load(size) + flops / speed(calculated(cell, size.device), size.device)


def scoring(cell: Cell, size: ModelSize) -> float:
    """Return the seconds for one task."""
    if cell.variant.heuristic:
        return 1.0
    flops = (documents(cell) or DEFAULT_DOCUMENTS) * _tokens(cell) * 2 * size.per_token * _passes(cell)
    return flops / speed(calculated(cell, size.device), size.device)


def timing(cell: Cell, size: ModelSize) -> float:
    """Return the seconds to time a pair."""
    processes = cell.settings["processes"]
    phases = sum(_timed(step, cell.settings["samples"] / processes, processes) for step in _steps(cell, size))
    return processes * (_load(size) + phases)


def using_memory(cell: Cell, size: ModelSize) -> float:
    """Return the seconds to measure memory: every phase once."""
    return _load(size) + sum(_steps(cell, size))


def _load(size: ModelSize) -> float:
    return size.bytes / LOAD_BYTES


def _timed(step: float, samples: float, processes: int) -> float:
    """Return the seconds for one process to time a phase of a pair.

    It takes as many steps as the time cap allows, but never fewer than it needs.
    """
    cap = Setting.phase_seconds / processes
    needed = 2 * max(1, MIN_PAIRS / processes) + 2 * min(WARM_STEPS[0], 1 + cap // step)
    return max(needed * step, min(cap + 2 * WARM_SECONDS, 2 * (samples + WARM_UP_STEPS) * step))


def _steps(cell: Cell, size: ModelSize) -> tuple[float, ...]:
    """Return the seconds of one step of each phase. Prompts cost arithmetic, new tokens also read the weights used."""
    load, dtype = cell.settings["workload"], calculated(cell, size.device)
    forward = 2 * size.per_token * load["batch"] / speed(dtype, size.device)
    prompt = forward * load["prompt"]
    met = min(size.parameters, size.per_token * load["batch"])  # the tokens of a batch choose experts of their own
    token = forward + met * WIDTH[dtype] / (GPU_READ_BYTES if devices.is_gpu(size.device) else READ_BYTES)
    if cell.variant.family == "encoder":
        return (prompt,)
    if cell.variant.family == "decoder":
        return (prompt, token, prompt + load["generate"] * token)
    encode, prefill, token = ENCODER_SHARE * prompt, CROSS_SHARE * prompt + token, (1 - ENCODER_SHARE) * token
    return (encode, prefill, token, encode + prefill + load["generate"] * token)


def calculated(cell: Cell, device: str = "cpu") -> str:
    """Return the precision that a cell will run in on this machine: the one asked for, where that is not ``auto``."""
    if "engine" in cell.settings:
        return environment.arithmetic(cell.variant.dtype, cell.settings["dtype"], device)
    return environment.arithmetic(cell.variant.dtype, cell.settings.get("compute_dtype", "auto"), device)


def speed(dtype: str, device: str = "cpu") -> float:
    """Return the floating-point operations per second in a precision, on this machine."""
    if devices.is_gpu(device):
        return GPU_FLOPS["float32" if dtype == "float32" else "bfloat16"]
    return EMULATED_FLOPS if dtype != "auto" and environment.emulated(dtype) else FLOPS[dtype]


def documents(cell: Cell) -> int:
    """Return how many documents a benchmark cell scores, as far as that is known before the run (0: unknown)."""
    task = benchmarks.row_of(cell.settings)
    size = (task and task.n) or cell.documents
    limit = (cell.settings.get("limit") or 0) * (task.parts if task else 1)
    return min(size, limit) if size and limit else size or limit


def _tokens(cell: Cell) -> int:
    """Return the tokens that a document costs: its own, those of few-shot examples, and those of a generated answer."""
    task, family = benchmarks.row_of(cell.settings), cell.variant.family
    usual = DOCUMENT_TOKENS[family]
    if task and task.adapter == "generation":
        return (task.prompt or usual) + (task.tokens or 0)
    if task and task.tokens:
        return task.tokens
    one = (task.prompt if task else 0) * (READINGS if family == "encoder-decoder" else 1) or usual
    examples = one * (cell.settings.get("num_fewshot") or 0)
    if family == "decoder" and task and task.examples:
        # All documents begin with the same examples. A batch has twice its longest input's tokens: examples cost less
        # than it adds.
        examples = min(examples, one)
    return one + examples


def _passes(cell: Cell) -> int:
    """Return how often a token is read: a masked language model reads a text once for each token that it scores."""
    if cell.variant.family != "encoder":
        return 1
    task = benchmarks.row_of(cell.settings)
    if task and task.adapter == "pseudo_perplexity":
        return task.tokens or 1
    return MASKED_TOKENS if task is None or task.adapter == "harness" else 1


def training(job: Job, size: ModelSize) -> float:
    """Return the seconds of steps that train the model on text of their own, each on its device, in its precision."""
    return sum(_trained(step, cell, size) for cell in job.making for step in cell.variant.steps[-1:])


def _trained(step: Step, cell: Cell, size: ModelSize) -> float:
    kind, asked = kinds()[step.verb], step.settings.get("precision", "auto")
    device = size.device if kind.on_device(step) else "cpu"
    dtype = environment.training_arithmetic(cell.variant.dtype, asked, device)
    return 2 * size.per_token * kind.trains(step) / speed(dtype, device)


def held(steps: Iterable[Step], size: ModelSize) -> int:
    """Return the extra bytes that a step holds in memory or on disk: the most of ``steps``, done one after another."""
    return int(size.parameters * max((kinds()[step.verb].holds(step) for step in steps), default=0.0))


def _share(step: Step, tokens: int) -> float:
    """Return the share of a text of ``tokens`` tokens that a step reads."""
    return min(1.0, kinds()[step.verb].at_most(step) / tokens)


def calibrating(job: Job, size: ModelSize) -> float:
    """Return the seconds to run calibration text through the model, with its second moments.

    That is done once for all versions, or twice for each.
    """
    read = [cell for cell in job.making if cell.settings.get("samples")]
    if not read:
        return 0.0
    setting, last = read[0].settings, [cell.variant.steps[-1] for cell in read]
    kind, passages = kinds()[last[0].verb], read[0].variant.family != "decoder"
    limits = (setting["length"] or LENGTH, size.longest, LONGEST_PASSAGE if passages else None)
    length = min(one for one in limits if one)
    # Padding costs as much as text, but nothing is gathered from it.
    padded, tokens = (setting["samples"] * one for one in (length, min(length, PASSAGE_TOKENS) if passages else length))
    trained = sum(_share(step, tokens) * kinds()[step.verb].passes(step, size.blocks) for step in last) - len(read)
    device = size.device if kind.on_device(last[0]) else "cpu"
    forward = 2 * size.per_token * padded / speed(calculated(read[0], device), device)
    wide = 2 * size.per_token / speed("float32", device)
    passes = 1 if kind.one_pass(last[0]) else 2 * len(read)
    once = forward + kind.moments * wide * tokens / 2
    return passes * once + trained * wide * padded + len(read) * size.parameters * SOLVE_SECONDS
