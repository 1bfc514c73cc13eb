"""Measures latency and memory of models on disk, from the parent process, which sleeps while the ranks work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsebench import children, devices, environment
from sparsebench.errors import MeasureError, ParityError, SparsebenchError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import FLOAT, Scheme, scheme_of
from sparsebench.models.modules.skipping import skips
from sparsebench.models.shape.topology import refuse_text
from sparsebench.runtime import intervals
from sparsebench.runtime.engines import check_gpu, engine, engines
from sparsebench.runtime.footprint import footprint, model_bytes, working_bytes
from sparsebench.runtime.group import RankGroup
from sparsebench.runtime.machine import observe, placement, stolen, threads_per_rank
from sparsebench.runtime.results import (
    LatencyResult,
    Machine,
    MemoryResult,
    Parity,
    PhaseMemory,
    RankMemory,
    Setting,
    Side,
    TimingSample,
)
from sparsebench.runtime.workload import check_positions
from sparsebench.storage import is_packed

Emit = Callable[[str, LatencyResult | SparsebenchError], None]
PRECISION = 0.02
"""More processes are run where an interval reaches further from its ratio than this share of it."""
SHARE = re.compile(r"\d+%")
"""A share in a kernel's description, such as that of the weights read."""


def check_supported(config: Mapping[str, Any], family: str, setting: Setting) -> None:
    """Raise UnsupportedError where a model's config.json alone shows that the engine cannot run it in this setting."""
    if setting.ranks > 1 and not engines()[setting.engine].shards:
        raise UnsupportedError(
            f"the {setting.engine} engine runs in one process, not at {setting.ranks} ranks",
            f"measure it at one rank, or use {' or '.join(row.name for row in engines().values() if row.shards)}",
        )
    refuse_text(config)
    scheme = scheme_of(config)
    check_device(setting, scheme.encoding if scheme else FLOAT)
    if skips(config):
        _check_skipping(bool(scheme), setting)
    if scheme:
        _check_quantized(scheme, setting)
    engine(setting.engine).check(config, setting.ranks)
    check_positions(config, family, setting.workload)


def check_device(setting: Setting, encoding: str = FLOAT) -> None:
    """Raise UnsupportedError for a GPU setting whose engine or ``encoding`` needs a CPU, or with too few GPUs."""
    if not setting.on_gpu:
        return
    check_gpu(setting.engine)
    there = len(devices.chosen(setting.device))
    if setting.ranks > there and not setting.nodes:
        raise UnsupportedError(
            f"{setting.ranks} ranks need {setting.ranks} GPUs, but device {setting.device} has {there}",
            "measure fewer ranks, on a machine with more GPUs, or on several `nodes` of a cluster of Ray's",
        )
    if encoding != FLOAT:
        raise UnsupportedError(
            f"{encoding} weights are run on a CPU only: torch's kernels for them are a CPU's",
            "say `device: cpu`, or --device cpu",
        )


def _check_quantized(scheme: Scheme, setting: Setting) -> None:
    able = [row.name for row in engines().values() if scheme.encoding in row.encodings]
    if setting.engine not in able:
        raise UnsupportedError(
            f"the {setting.engine} engine does not run {scheme.encoding} weights", f"use {' or '.join(able)}"
        )
    if setting.ranks > 1:
        raise UnsupportedError(f"{scheme.encoding} weights are not run at {setting.ranks} ranks", "measure at one rank")
    scheme.check_kernels()


def _check_skipping(quantized: bool, setting: Setting) -> None:
    if quantized:
        raise UnsupportedError("no engine can skip the weights of a quantized model", "score it, or do not quantize it")
    able = [row.name for row in engines().values() if row.skipping]
    if setting.engine not in able:
        raise UnsupportedError(
            f"the {setting.engine} engine cannot skip weights: it would compute with all of them",
            f"use {' or '.join(able)}",
        )


def measure_latency(
    dense: Path, variants: Sequence[tuple[str, Path]], family: str, setting: Setting, emit: Emit
) -> None:
    """Time each of ``variants`` (caller's key, folder) beside ``dense``; ``emit`` gets each one's result or error.

    In each of the setting's processes one group of ranks holds the dense model and each variant in turn, and alternates
    blocks of steps between them. Where an interval is still wide, half as many processes are added. A variant that is
    the dense folder itself is measured against a second copy (an A/A run: the noise floor). Where two models do not fit
    into memory, each is measured alone and ``baseline`` says ``unpaired``.
    Raises UnsupportedError where the engine cannot run this model in this setting, MeasureError where a number cannot
    be believed.
    """
    for folder in (dense, *(folder for _, folder in variants)):
        _check_folder(folder, family, setting)
    largest = max((folder for _, folder in variants), key=lambda folder: model_bytes(folder, setting))
    threads = threads_per_rank(setting)
    before = observe(threads)
    alone: list[Heard] = []
    beside: Path | None = dense
    if not _pair_fits(dense, largest, setting):
        for folder in (dense, largest):
            _check_fits(folder, setting)
        beside = None
        alone = _timed({"dense": dense}, None, family, setting, emit, baseline=True)["dense"]
    heard = _timed(dict(variants), beside, family, setting, emit)
    after = observe(threads)
    for key, messages in heard.items():
        emit(key, _result(messages, alone, setting, before, after))


def measure_pair(dense: Path, variant: Path, family: str, setting: Setting) -> LatencyResult:
    """Time one variant as ``measure_latency`` does; return its result or raise its error."""
    found: list[LatencyResult | SparsebenchError] = []
    measure_latency(dense, [("it", variant)], family, setting, lambda _, one: found.append(one))
    (one,) = found
    if isinstance(one, SparsebenchError):
        raise one
    return one


Heard = Mapping[str, Any]
"""The message of one process about one model."""


def _timed(
    variants: Mapping[str, Path],
    dense: Path | None,
    family: str,
    setting: Setting,
    emit: Emit,
    baseline: bool = False,
) -> dict[str, list[Heard]]:
    """Run the processes; return each variant's messages. A variant that fails is left out, and ``emit`` gets its error.

    A variant that fails in a process that was added keeps what it has, with a note. Raises an error that two variants
    meet one directly after the other, which is no variant's own, and a ``baseline``'s error.
    """
    left, heard = dict(variants), {key: list[Heard]() for key in variants}
    said = ""

    def go(keys: Sequence[str], numbers: Sequence[int], added: bool = False) -> None:
        nonlocal said
        todo, waiting = list(numbers), list(keys)
        while todo and waiting:
            spec = _spec(dense, [left[key] for key in waiting], family, todo, baseline)
            count = 0
            try:
                with RankGroup(spec, setting) as running:
                    for message in running.messages():
                        if message["kind"] == "result":
                            heard[waiting[message["index"]]].append(message)
                            count += 1
                return
            except SparsebenchError as error:
                place, index = divmod(count, len(waiting))
                if not added and (baseline or place == len(todo) or (not count and str(error) == said)):
                    raise
                said = "" if isinstance(error, ParityError) else str(error)
                # The process is repeated for the other variants, so its results for them are dropped.
                for key in waiting[:index]:
                    heard[key].pop()
                failed = waiting.pop(index)
                del left[failed]
                if added:
                    first = heard[failed][0]
                    note = f"a process that was added failed: {error.message}"
                    heard[failed][0] = {**first, "notes": [*first["notes"], note]}
                else:
                    del heard[failed]
                    emit(failed, error)
                todo = todo[place:]

    numbers = range(setting.processes)
    for some in _groups(numbers):
        go(list(left), some)
    more = {} if baseline else {key: further(_samples(messages), setting) for key, messages in heard.items()}
    wide = [key for key, numbers in more.items() if numbers]
    numbers = more[wide[0]] if wide else range(0)
    for some in _groups(numbers):
        go([key for key in wide if key in left], some, added=True)
    return heard


def _groups(numbers: range) -> list[range]:
    """Return the processes ``numbers`` by groups of ranks: one, where they may be forks of one that has imported all."""
    return [numbers] if children.may_fork() else [range(number, number + 1) for number in numbers]


def further(samples: Sequence[TimingSample], setting: Setting) -> range:
    """Return the numbers of the processes to add to those of ``setting``, which took ``samples`` of one variant.

    Half as many are added where there are several and a difference is not yet known to ``PRECISION``; else none.
    """
    paired = {"dense", "variant"} == {one.side for one in samples}
    wide = setting.processes > 1 and paired and intervals.wide(intervals.differences(samples, True), PRECISION)
    return range(setting.processes, setting.processes + (setting.processes // 2 if wide else 0))


def _samples(messages: Sequence[Heard]) -> list[TimingSample]:
    return [TimingSample(**row) for message in messages for row in message["samples"]]


def _result(
    messages: Sequence[Heard], alone: Sequence[Heard], setting: Setting, before: Machine, after: Machine
) -> LatencyResult:
    """Build a variant's result from all processes' messages; ``alone`` are the dense model's where it ran by itself."""
    dense = [replace(sample, side="dense") for sample in _samples(alone)]
    samples = (*dense, *_samples(messages))
    settled = Counter((name, side) for message in messages for name, side in message["steady"])
    settled += Counter((name, "dense") for message in alone for name, _ in message["steady"])
    spent: dict[tuple[str, Side], list[float]] = {}
    for message in alone:
        for name, _, joules in message["energy"]:
            spent.setdefault((name, "dense"), []).append(joules)
    for message in messages:
        for name, side, joules in message["energy"]:
            spent.setdefault((name, side), []).append(joules)
    phases = intervals.summaries(samples, settled, spent)
    found = intervals.differences(samples, not alone)
    facts = _facts(messages[0], setting)
    # What was read is measured anew by each process, and is no other kernel.
    kernels = {SHARE.sub("", message["kernel"]): message["kernel"] for message in reversed(messages)}
    others = Counter(SHARE.sub("", message["kernel"]) for message in messages)
    del others[SHARE.sub("", facts["kernel"])]
    unlike = (f"{count} of {len(messages)} processes ran {kernels[name]}" for name, count in others.items())
    notes = (*unlike, *intervals.waiting(phases, facts["device"], setting.ranks), *intervals.disagreeing(phases, found))
    return LatencyResult(
        **{**facts, "notes": (*facts["notes"], *notes)},
        baseline="unpaired" if alone else "paired",
        phases=phases,
        differences=found,
        samples=samples,
        before=before,
        after=after,
        energy_source=messages[0]["energy_source"],
        placement=placement(),
        stolen=stolen(before, after),
    )


def measure_memory(folder: Path, family: str, setting: Setting) -> MemoryResult:
    """Measure the peak memory of the model in ``folder``, alone in its ranks, per phase, per rank and summed.

    Raises UnsupportedError where the engine cannot run this model in this setting or the system has no exact peak,
    MeasureError where it does not fit or a number cannot be believed.
    """
    _check_folder(folder, family, setting)
    _check_fits(folder, setting)
    threads = threads_per_rank(setting)
    before = observe(threads)
    spec = {"job": "memory", "folder": str(folder.absolute()), "family": family}
    with RankGroup(spec, setting) as running:
        found = [message for message in running.messages() if message["kind"] == "result"]
    rows = sorted((RankMemory(**row) for message in found for row in message["rows"]), key=lambda row: row.rank)
    sums: dict[str, int] = {}
    for row in rows:
        sums[row.phase] = sums.get(row.phase, 0) + row.peak_bytes
    return MemoryResult(
        **_facts(found[0], setting),
        source=found[0]["source"],
        peak_bytes=max(total for phase, total in sums.items() if phase != "load"),
        phases=tuple(PhaseMemory(phase, total) for phase, total in sums.items()),
        per_rank=tuple(rows),
        before=before,
        after=observe(threads),
    )


def _spec(
    dense: Path | None,
    variants: Sequence[Path],
    family: str,
    processes: Sequence[int],
    baseline: bool,
) -> dict[str, Any]:
    """Return the ranks' spec. Without ``dense`` each variant is timed alone; a ``baseline`` is loaded as one."""
    return {
        "job": "latency",
        "dense": str(dense.absolute()) if dense else None,
        "variants": [(index, str(folder.absolute())) for index, folder in enumerate(variants)],
        "processes": list(processes),
        "baseline": baseline,
        "family": family,
    }


def _facts(message: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Return the fields that latency and memory results share."""
    said = {name: message[name] for name in ("kernel", "threads", "device", "dtype")}
    parity = Parity(**message["parity"]) if message["parity"] else None
    said |= {"engine": setting.engine, "ranks": setting.ranks}
    return {**said, "parity": parity, "notes": tuple(message["notes"])}


def _check_folder(folder: Path, family: str, setting: Setting) -> None:
    check_supported(Checkpoint(folder).config, family, setting)
    if is_packed(folder) and not engines()[setting.engine].reads_packed:
        raise UnsupportedError(
            f"{folder.name} is packed, and the {setting.engine} engine reads dense folders only",
            "unpack it with `sparsebench unpack`, or use the sparse engine",
        )


def _pair_fits(dense: Path, variant: Path, setting: Setting) -> bool:
    if setting.nodes:  # this machine's memory says nothing about theirs
        return True
    more, room = model_bytes(variant, setting), _gpu_room(setting)
    # CUDA's context, the libraries' workspaces and the recorded steps' caches take a part of each GPU.
    if room is not None and (working_bytes(dense, setting) + more) // setting.ranks > room - 2**30:
        return False
    return footprint(dense, setting) + more <= environment.memory()[1]


def _gpu_room(setting: Setting) -> int | None:
    """Return the free bytes for a rank's share on its GPU; None where the share is kept elsewhere."""
    if setting.device == "cpu" or engines()[setting.engine].offloads:
        return None
    return devices.free_memory("cuda" if setting.device == "auto" else setting.device, setting.ranks)


SMALLER = (
    "use a smaller dtype or fewer ranks; pack a pruned model and use the sparse engine, which holds its nonzeros only; "
    "or use a larger machine"
)
OFFLOAD = "use the deepspeed-zero3 engine, which keeps parameters in main memory; or a smaller dtype, or more ranks"


def _check_fits(folder: Path, setting: Setting) -> None:
    """Raise MeasureError where the files alone show that the machine's or a GPU's memory is too small."""
    if setting.nodes:
        return
    need, available = footprint(folder, setting), environment.memory()[1]
    where = f"at {setting.ranks} rank{'s' * (setting.ranks > 1)} of the {setting.engine} engine"
    if need > available:
        raise MeasureError(
            f"{folder.name} needs about {need / 2**30:.1f} GiB {where}, by its files and the workload; "
            f"{available / 2**30:.1f} GiB are available",
            SMALLER,
        )
    room, share = _gpu_room(setting), working_bytes(folder, setting) // setting.ranks
    if room is not None and share > room:
        raise MeasureError(
            f"{folder.name} needs about {share / 2**30:.1f} GiB on each GPU {where}, by its files and the workload; "
            f"{room / 2**30:.1f} GiB are free",
            OFFLOAD,
        )
