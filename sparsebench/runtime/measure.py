"""Measures latency and memory of models on disk, from the parent process, which sleeps while the ranks work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from sparsebench import children, devices, environment
from sparsebench.errors import MeasureError, ParityError, SparsebenchError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import output_family
from sparsebench.runtime import intervals
from sparsebench.runtime.engines import engines
from sparsebench.runtime.footprint import footprint, model_bytes, working_bytes
from sparsebench.runtime.group import RankGroup
from sparsebench.runtime.machine import observe, placement, stolen, threads_per_rank
from sparsebench.runtime.refusals import check_folder
from sparsebench.runtime.results import (
    LatencyResult,
    Machine,
    MemoryResult,
    Parity,
    PhaseMemory,
    RankJob,
    RankMemory,
    Setting,
    Side,
    TimingSample,
)

EmitLatency = Callable[[str, LatencyResult | SparsebenchError], None]
TimingProgress = Callable[[int, int, str], None]
"""Is told how many processes have timed a variant, of how many in all, and what one of them has just done."""
Message = Mapping[str, Any]
"""What a process says of one model."""
PRECISION = 0.02
"""More processes are run where an interval reaches further from its ratio than this share of it."""
PERCENTAGE = re.compile(r"\d+%")
"""A share in a kernel's description, such as that of the weights read."""
GPU_OVERHEAD = 1 << 30
"""Bytes that CUDA's context, the libraries' workspaces and the recorded steps' caches take of each GPU."""
SMALLER = (
    "use a smaller dtype or fewer ranks; pack a pruned model and use the sparse engine, which holds its nonzeros only; "
    "or use a larger machine"
)
OFFLOAD = "use the deepspeed-zero3 engine, which keeps parameters in main memory; or a smaller dtype, or more ranks"


def measure_latency(
    dense: Path,
    variants: Sequence[tuple[str, Path]],
    family: Family,
    setting: Setting,
    emit: EmitLatency,
    progress: TimingProgress | None = None,
) -> None:
    """Time each of ``variants`` (caller's key, folder) beside ``dense``; ``emit`` gets each one's result or error.

    In each of the setting's processes one group of ranks holds the dense model and each variant in turn, and alternates
    blocks of steps between them. Where an interval is still wide, half as many processes are added. A variant that is
    the dense folder itself is measured against a second copy (an A/A run: the noise floor). Where two models do not fit
    into memory, each is measured alone and ``baseline`` says ``unpaired``.
    Raises UnsupportedError where the engine cannot run the dense model in this setting, MeasureError where that does not
    fit or a number cannot be believed.
    """
    family = _measured_family(dense, family)
    _check_runs(dense, family, setting)
    supported: dict[str, Path] = {}
    for key, folder in variants:
        try:
            _check_runs(folder, family, setting)
        except SparsebenchError as error:
            emit(key, error)
        else:
            supported[key] = folder
    if not supported:
        return
    largest = max(supported.values(), key=lambda folder: model_bytes(folder, setting))
    threads = threads_per_rank(setting)
    before = observe(threads)
    dense_messages: list[Message] = []
    beside: Path | None = dense
    if not _pair_fits(dense, largest, setting):
        beside = None
        dense_messages = _time_alone(dense, family, setting)
    timing = _Timing(supported, beside, family, setting, emit, progress)
    timing.run(list(timing.messages), range(setting.processes))
    timing.add_processes()
    after = observe(threads)
    for key, messages in timing.messages.items():
        emit(key, _result(messages, dense_messages, setting, before, after))


def measure_pair(dense: Path, variant: Path, family: Family, setting: Setting) -> LatencyResult:
    """Time one variant as ``measure_latency`` does; return its result or raise its error."""
    outcomes: list[LatencyResult | SparsebenchError] = []
    measure_latency(dense, [("", variant)], family, setting, lambda _, outcome: outcomes.append(outcome))
    (outcome,) = outcomes
    if isinstance(outcome, SparsebenchError):
        raise outcome
    return outcome


def _time_alone(dense: Path, family: Family, setting: Setting) -> list[Message]:
    """Return what the processes say that time the dense model by itself, as the baseline. Raises the model's error."""
    folder = str(dense.absolute())
    jobs = [
        RankJob(kind="latency", family=family, variants=(folder,), baseline=True, processes=tuple(group))
        for group in _groups(range(setting.processes))
    ]
    return [message for job in jobs for message in _results(job, setting)]


def _groups(processes: range) -> list[range]:
    """Return the processes that are run together: all, as forks of one that has imported all, or else each by itself."""
    return [processes] if children.may_fork() else [range(number, number + 1) for number in processes]


class _Timing:
    """The processes that time ``variants`` beside ``dense``, each alone without that, and their ``messages`` by variant.

    A variant that fails is left out, and ``emit`` gets its error.
    """

    def __init__(
        self,
        variants: Mapping[str, Path],
        dense: Path | None,
        family: Family,
        setting: Setting,
        emit: EmitLatency,
        progress: TimingProgress | None,
    ) -> None:
        self.variants, self.dense, self.family, self.setting = variants, dense, family, setting
        self.emit, self.progress = emit, progress
        self.planned: Counter[str] = Counter()
        self.messages: dict[str, list[Message]] = {key: [] for key in variants}
        self.added = False

    def run(self, keys: Sequence[str], processes: range, added: bool = False) -> None:
        """Run ``processes`` for the variants ``keys``.

        A variant that fails in a process that was ``added`` keeps what it has, with a note. Raises an error that two
        variants meet one directly after the other, which is no variant's own.
        """
        self.planned.update(dict.fromkeys(keys, len(processes)))
        self.added = added
        for group in _groups(processes):
            self._run_group([key for key in keys if key in self.messages], list(group))

    def add_processes(self) -> None:
        """Add processes for the variants whose intervals are wide."""
        more_processes = {
            key: processes_to_add(_samples(messages), self.setting) for key, messages in self.messages.items()
        }
        wide = [key for key, processes in more_processes.items() if processes]
        if wide:
            self.run(wide, more_processes[wide[0]], added=True)

    def _run_group(self, keys: list[str], processes: list[int]) -> None:
        last_error = ""
        while processes and keys:
            message_count = 0
            try:
                for message in _results(self._job(keys, processes), self.setting, self._show_progress):
                    self.messages[keys[message["index"]]].append(message)
                    message_count += 1
                return
            except SparsebenchError as error:
                finished_count, index = divmod(message_count, len(keys))
                all_finished = finished_count == len(processes)
                if self.added and all_finished:
                    return  # all was measured: only the end of the processes failed
                is_common = all_finished or (not message_count and str(error) == last_error)
                if not self.added and is_common:
                    raise
                last_error = "" if isinstance(error, ParityError) else str(error)
                # The process is repeated for the other variants, so its results for them are dropped.
                for key in keys[:index]:
                    self.messages[key].pop()
                self._give_up(keys.pop(index), error)
                del processes[:finished_count]

    def _show_progress(self, what: str) -> None:
        if self.progress:
            done = sum(map(len, self.messages.values()))
            total = sum(self.planned[key] for key in self.messages)
            why = "; processes were added, as an interval is wide" if self.added else ""
            self.progress(done, total, f"timed; {what}{why}")

    def _give_up(self, key: str, error: SparsebenchError) -> None:
        if self.added:
            first_message = self.messages[key][0]
            note = f"a process that was added failed: {error.message}"
            self.messages[key][0] = {**first_message, "notes": [*first_message["notes"], note]}
        else:
            del self.messages[key]
            self.emit(key, error)

    def _job(self, keys: Sequence[str], processes: Sequence[int]) -> RankJob:
        return RankJob(
            kind="latency",
            family=self.family,
            variants=tuple(str(self.variants[key].absolute()) for key in keys),
            dense=str(self.dense.absolute()) if self.dense else None,
            processes=tuple(processes),
        )


def _results(job: RankJob, setting: Setting, progress: Callable[[str], None] = lambda _: None) -> Iterator[Message]:
    """Run a group of ranks and yield each result that one sends; ``progress`` is told what the first rank did."""
    with RankGroup(asdict(job), setting) as group:
        for message in group.messages():
            if message["kind"] == "result":
                yield message
            elif message["rank"] == 0:
                progress(message["what"])


def processes_to_add(samples: Sequence[TimingSample], setting: Setting) -> range:
    """Return the numbers of the processes to add to those of ``setting``, which took ``samples`` of one variant.

    Half as many are added where there are several and a difference is not yet known to ``PRECISION``; else none.
    """
    paired = {"dense", "variant"} == {sample.side for sample in samples}
    wide = setting.processes > 1 and paired and intervals.any_is_wide(intervals.differences(samples, True), PRECISION)
    return range(setting.processes, setting.processes + (setting.processes // 2 if wide else 0))


def _samples(messages: Sequence[Message]) -> list[TimingSample]:
    return [TimingSample(**row) for message in messages for row in message["samples"]]


def _result(
    messages: Sequence[Message], dense_messages: Sequence[Message], setting: Setting, before: Machine, after: Machine
) -> LatencyResult:
    """Build a variant's result from all processes' messages; ``dense_messages`` are those of a dense model alone."""
    all_messages = [*map(_of_dense, dense_messages), *messages]
    samples = _samples(all_messages)
    steady_counts: Counter[tuple[str, Side]] = Counter()
    joules: dict[tuple[str, Side], list[float]] = {}
    for message in all_messages:
        steady_counts.update((phase, side) for phase, side in message["steady"])
        for phase, side, value in message["energy"]:
            joules.setdefault((phase, side), []).append(value)
    phases = intervals.summaries(samples, steady_counts, joules)
    differences = intervals.differences(samples, not dense_messages)
    shared_fields = _shared_fields(messages[0], setting)
    notes = (
        *_other_kernels(messages),
        *intervals.waiting_notes(phases, shared_fields["device"], setting.ranks),
        *intervals.disagreement_notes(phases, differences),
    )
    return LatencyResult(
        **{**shared_fields, "notes": (*shared_fields["notes"], *notes)},
        baseline="unpaired" if dense_messages else "paired",
        phases=phases,
        differences=differences,
        samples=tuple(samples),
        before=before,
        after=after,
        energy_source=messages[0]["energy_source"],
        placement=placement(),
        stolen=stolen(before, after),
        read_bytes_per_second=median(message["read_bytes_per_second"] for message in messages),
    )


def _of_dense(message: Message) -> Message:
    """Return what a process says of the model that it timed alone, which was loaded as its variant, as the dense one's."""
    return {
        **message,
        "samples": [{**sample, "side": "dense"} for sample in message["samples"]],
        "steady": [(phase, "dense") for phase, _ in message["steady"]],
        "energy": [(phase, "dense", value) for phase, _, value in message["energy"]],
    }


def _other_kernels(messages: Sequence[Message]) -> Iterator[str]:
    """Yield a note for each kernel that other processes ran than the first: a share that was read is no other kernel."""
    kernels = [PERCENTAGE.sub("", message["kernel"]) for message in messages]
    for kernel, count in Counter(kernels).items():
        if kernel != kernels[0]:
            yield f"{count} of {len(messages)} processes ran {messages[kernels.index(kernel)]['kernel']}"


def _measured_family(folder: Path, family: Family) -> Family:
    """Return the family by whose phases a model is measured: one with a head for classes has a single pass."""
    return output_family(family, Checkpoint(folder).config)


def measure_memory(folder: Path, family: Family, setting: Setting) -> MemoryResult:
    """Measure the peak memory of the model in ``folder``, alone in its ranks, per phase, per rank and summed.

    Raises UnsupportedError where the engine cannot run this model in this setting or the system has no exact peak,
    MeasureError where it does not fit or a number cannot be believed.
    """
    family = _measured_family(folder, family)
    _check_runs(folder, family, setting)
    threads = threads_per_rank(setting)
    before = observe(threads)
    job = RankJob("memory", family, (str(folder.absolute()),))
    messages = sorted(_results(job, setting), key=lambda message: message["rank"])  # the first tells of the GPUs
    memories = [RankMemory(**memory) for message in messages for memory in message["memories"]]
    phase_bytes: Counter[str] = Counter()
    for memory in memories:
        phase_bytes[memory.phase] += memory.peak_bytes
    return MemoryResult(
        **_shared_fields(messages[0], setting),
        source=messages[0]["source"],
        peak_bytes=max(nbytes for phase, nbytes in phase_bytes.items() if phase != "load"),
        phases=tuple(PhaseMemory(phase, nbytes) for phase, nbytes in phase_bytes.items()),
        per_rank=tuple(memories),
        before=before,
        after=observe(threads),
    )


def _shared_fields(message: Message, setting: Setting) -> dict[str, Any]:
    """Return the fields that latency and memory results share."""
    return {
        **{name: message[name] for name in ("kernel", "threads", "device", "dtype")},
        "engine": setting.engine,
        "ranks": setting.ranks,
        "parity": Parity(**message["parity"]) if message["parity"] else None,
        "notes": tuple(message["notes"]),
    }


def _check_runs(folder: Path, family: Family, setting: Setting) -> None:
    """Raise UnsupportedError or MeasureError where a model's files show that it cannot run, or does not fit."""
    check_folder(folder, family, setting)
    _check_fits(folder, setting)


def _pair_fits(dense: Path, variant: Path, setting: Setting) -> bool:
    if setting.nodes:  # this machine's memory says nothing about theirs
        return True
    variant_bytes, gpu_bytes = model_bytes(variant, setting), _gpu_room(setting)
    if gpu_bytes is not None:
        rank_bytes = (working_bytes(dense, setting) + variant_bytes) // setting.ranks
        if rank_bytes > gpu_bytes - GPU_OVERHEAD:
            return False
    return footprint(dense, setting) + variant_bytes <= environment.memory()[1]


def _gpu_room(setting: Setting) -> int | None:
    """Return the free bytes for a rank's share on its GPU; None where the share is kept elsewhere."""
    if setting.device == "cpu" or engines()[setting.engine].offloads:
        return None
    return devices.free_memory("cuda" if setting.device == "auto" else setting.device, setting.ranks)


def _check_fits(folder: Path, setting: Setting) -> None:
    """Raise MeasureError where the files alone show that the machine's or a GPU's memory is too small."""
    if setting.nodes:
        return
    limits = [(footprint(folder, setting), environment.memory()[1], "", SMALLER)]
    if (gpu_bytes := _gpu_room(setting)) is not None:
        limits.append((working_bytes(folder, setting) // setting.ranks, gpu_bytes, " on each GPU", OFFLOAD))
    for needed, available, where, way_out in limits:
        if needed > available:
            raise MeasureError(
                f"{folder.name} needs about {needed / 2**30:.1f} GiB{where} with the {setting.engine} engine at "
                f"{setting.ranks} ranks, by its files and the workload; {available / 2**30:.1f} GiB are free",
                way_out,
            )
