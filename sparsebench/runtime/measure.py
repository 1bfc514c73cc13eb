"""Latency and memory of models on disk, for the rest of the program. Runs in the parent, which sleeps meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sparsebench import environment
from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.quantized import Scheme, scheme_of
from sparsebench.models.skipping import skips
from sparsebench.models.topology import refuse_text
from sparsebench.runtime import latency
from sparsebench.runtime.engines import engine, engines
from sparsebench.runtime.footprint import footprint, model_bytes, working_bytes
from sparsebench.runtime.launch import RankGroup, variables
from sparsebench.runtime.machine import observe, threads_per_rank
from sparsebench.runtime.nodes import NodeGroup
from sparsebench.runtime.results import LatencyResult, MemoryResult, Parity, PhaseMemory, RankMemory, Sample, Setting
from sparsebench.runtime.workload import check_positions
from sparsebench.storage import is_packed

Emit = Callable[[str, LatencyResult], None]


def check_supported(config: Mapping[str, Any], family: str, setting: Setting) -> None:
    """Raise UnsupportedError where a model's config.json alone tells that the engine cannot run it so."""
    if setting.ranks > 1 and not engines()[setting.engine].shards:
        raise UnsupportedError(
            f"the {setting.engine} engine runs in one process, not at {setting.ranks} ranks",
            f"measure it at one rank, or use {' or '.join(row.name for row in engines().values() if row.shards)}",
        )
    refuse_text(config)
    scheme = scheme_of(config)
    if scheme:
        _check_quantized(scheme, setting)
    if skips(config):
        _check_skipping(bool(scheme), setting)
    engine(setting.engine).check(config, setting.ranks)
    check_positions(config, family, setting.workload)


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
    able = [row.name for row in engines().values() if row.skipping]
    if setting.engine not in able:
        raise UnsupportedError(
            f"the {setting.engine} engine would compute with the weights that are to be skipped",
            f"use {' or '.join(able)}",
        )
    if quantized:
        raise UnsupportedError("no engine skips weights that are integers", "it can be scored")


def measure_latency(
    dense: Path, variants: Sequence[tuple[str, Path]], family: str, setting: Setting, emit: Emit
) -> None:
    """Time each of ``variants`` (caller's key, folder) beside ``dense``; ``emit`` gets each result as it is finished.

    One group of ranks holds the dense model and each variant in turn, and alternates blocks of steps between them. A
    variant that is the dense folder itself is measured against a second copy (an A/A run: the noise floor). Where two
    models do not fit into memory each is measured alone and ``baseline`` says ``unpaired``.
    Raises UnsupportedError where the engine cannot run this model so, MeasureError where a number cannot be believed.
    """
    for folder in (dense, *(folder for _, folder in variants)):
        _check_folder(folder, family, setting)
    largest = max((folder for _, folder in variants), key=lambda folder: model_bytes(folder, setting))
    if _pair_fits(dense, largest, setting):
        _latency_group(dense, variants, family, setting, emit)
        return
    for folder in (dense, largest):
        _check_fits(folder, setting)
    alone: list[LatencyResult] = []
    _latency_group(None, [("", dense)], family, setting, lambda _, result: alone.append(result), baseline=True)
    _latency_group(None, variants, family, setting, lambda key, result: emit(key, _against(alone[0], result, setting)))


def measure_memory(folder: Path, family: str, setting: Setting) -> MemoryResult:
    """Peak memory of the model in ``folder``, alone in its ranks, per phase, per rank and summed.

    Raises UnsupportedError where the engine cannot run this model so or the system has no exact peak, MeasureError
    where it does not fit or a number cannot be believed.
    """
    _check_folder(folder, family, setting)
    _check_fits(folder, setting)
    threads = threads_per_rank(setting)
    before = observe(threads)
    spec = {"job": "memory", "folder": str(folder.absolute()), "family": family, "setting": asdict(setting)}
    with _group(spec, setting) as group:
        found = [message for message in group.messages() if message["kind"] == "result"]
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


def _group(spec: Mapping[str, Any], setting: Setting) -> RankGroup:
    """The ranks of ``setting``, here or on the nodes of its hostfile."""
    if setting.hosts:
        return NodeGroup(spec, setting.hosts, variables(setting), setting.timeout_seconds)
    return RankGroup(spec, setting.ranks, variables(setting), setting.timeout_seconds)


def _latency_group(
    dense: Path | None,
    variants: Sequence[tuple[str, Path]],
    family: str,
    setting: Setting,
    emit: Emit,
    baseline: bool = False,
) -> None:
    """One group of ranks; without ``dense`` the results have no differences yet. A ``baseline`` is loaded as one."""
    threads = threads_per_rank(setting)
    before = observe(threads)
    spec = {
        "job": "latency",
        "dense": str(dense.absolute()) if dense else None,
        "variants": [(index, str(folder.absolute())) for index, (_, folder) in enumerate(variants)],
        "baseline": baseline,
        "family": family,
        "setting": asdict(setting),
    }
    with _group(spec, setting) as group:
        for message in group.messages():
            if message["kind"] != "result":
                continue
            samples = tuple(Sample(**row) for row in message["samples"])
            settled = [(name, side) for name, side in message["steady"]]
            spent = {(name, side): joules for name, side, joules in message["energy"]}
            phases = latency.summaries(samples, settled, setting.seed, spent)
            after = observe(threads)
            facts = _facts(message, setting)
            result = LatencyResult(
                **{**facts, "notes": (*facts["notes"], *latency.waiting(phases, facts["device"], setting.ranks))},
                baseline="paired" if dense else "unpaired",
                phases=phases,
                differences=latency.differences(samples, True, setting.seed) if dense else (),
                samples=samples,
                before=before,
                after=after,
                energy_source=message["energy_source"],
            )
            before = after
            emit(variants[message["index"]][0], result)


def _against(alone: LatencyResult, variant: LatencyResult, setting: Setting) -> LatencyResult:
    """``variant`` with the dense model's samples, which another group measured, beside its own."""
    samples = tuple(replace(sample, side="dense") for sample in alone.samples) + variant.samples
    phases = tuple(replace(phase, side="dense") for phase in alone.phases) + variant.phases
    return replace(
        variant, samples=samples, phases=phases, differences=latency.differences(samples, False, setting.seed)
    )


def _facts(message: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """The fields that both kinds of result share."""
    said = {name: message[name] for name in ("kernel", "threads", "device", "dtype")}
    parity = Parity(**message["parity"]) if message["parity"] else None
    return {
        "engine": setting.engine,
        "ranks": setting.ranks,
        "parity": parity,
        "notes": tuple(message["notes"]),
        **said,
    }


def _check_folder(folder: Path, family: str, setting: Setting) -> None:
    check_supported(Checkpoint(folder).config, family, setting)
    if is_packed(folder) and not engine(setting.engine).reads_packed:
        raise UnsupportedError(
            f"{folder.name} is packed, and the {setting.engine} engine reads dense folders only",
            "unpack it with `sparsebench unpack`, or use the sparse engine",
        )


def _pair_fits(dense: Path, variant: Path, setting: Setting) -> bool:
    if setting.hosts:  # this machine's memory says nothing about theirs
        return True
    more, room = model_bytes(variant, setting), _gpu_room(setting)
    if room is not None and (working_bytes(dense, setting) + more) // setting.ranks > room:
        return False
    return footprint(dense, setting) + more <= environment.memory()[1]


def _gpu_room(setting: Setting) -> int | None:
    """Bytes for a rank's share on its GPU; None where it lies elsewhere."""
    return None if engines()[setting.engine].offloads else environment.gpu_memory()


SMALLER = (
    "use a smaller dtype or fewer ranks; pack a pruned model and use the sparse engine, which holds its nonzeros only; "
    "or use a larger machine"
)
OFFLOAD = "use the deepspeed-zero3 engine, which keeps parameters in main memory; or a smaller dtype, or more ranks"


def _check_fits(folder: Path, setting: Setting) -> None:
    """Raise MeasureError where the files alone tell that memory will not do, the machine's or a GPU's."""
    if setting.hosts:
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
