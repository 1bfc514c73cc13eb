"""``sparsebench measure``: memory and latency of one model, paired with another when ``--against`` is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebench import bounded
from sparsebench.cli.options import (
    COMPUTE_DTYPE,
    DEVICE,
    DTYPE,
    FAMILY,
    JSON,
    OFFLINE,
    SOURCE,
    check_name,
    names_of,
)
from sparsebench.cli.output import emit_json, emit_table, note, open_model, size
from sparsebench.errors import SparsebenchError

if TYPE_CHECKING:
    from sparsebench.runtime import LatencyResult, MemoryResult


def measure(
    source: SOURCE,
    against: Annotated[
        str | None, typer.Option(help="The baseline. Default: the model itself, which shows the noise floor.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="deepspeed, deepspeed-zero3, hf, sparse, skip, or one added by a plugin.",
            autocompletion=names_of("runtime.engines", "engines"),
        ),
    ] = "deepspeed",
    ranks: Annotated[int, typer.Option(min=1, max=bounded.FEW, help="Processes that share the model.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=bounded.MANY, help="Sequences at once.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, max=bounded.MANY, help="Tokens in each prompt.")] = 128,
    generate: Annotated[int, typer.Option(min=1, max=bounded.MANY, help="New tokens per sequence.")] = 16,
    samples: Annotated[
        int,
        typer.Option(
            min=4,
            max=bounded.MANY,
            help="Timed samples per phase for each of the two models, over all processes.",
        ),
    ] = 24,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=bounded.FEW,
            help="Processes that time the models, each loading them anew. A wide interval adds half as many.",
        ),
    ] = 5,
    family: FAMILY = None,
    dtype: DTYPE = "auto",
    compute_dtype: COMPUTE_DTYPE = "auto",
    device: DEVICE = "auto",
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Measure memory and latency of a model under an engine.

    Close other programs first: their load changes the times.

    \b
    sparsebench measure pruned/0.90 --against path:my-model
    sparsebench measure packed/0.90 --against path:my-model --engine sparse
    sparsebench measure hf:org/name@main --ranks 2 --batch 4 --prompt 256
    """
    from sparsebench import devices, runtime
    from sparsebench.models.shape.topology import refuse_text
    from sparsebench.notebook import speedups
    from sparsebench.runtime.engines import engine as made
    from sparsebench.runtime.engines import engines

    check_name("engine", engine, engines())

    def check(config: Mapping[str, Any]) -> None:
        refuse_text(config)
        made(engine).check(config, ranks)

    model = open_model(source, family, dtype, offline, check)
    dense = open_model(against, family, dtype, offline, check) if against else model
    there = devices.resolve(device)
    run_in = model.calculated(compute_dtype, there)
    work = runtime.Workload(batch, prompt, generate)
    setting = runtime.Setting(engine, ranks, work, run_in, samples, processes=processes, device=there)
    note(f"timing {model.name} against {dense.name if against else 'itself'} …", "dim")
    timed = runtime.measure_pair(dense.folder, model.folder, model.family, setting)
    note("measuring its memory …", "dim")
    memory, failure = None, None
    try:
        memory = runtime.measure_memory(model.folder, model.family, setting)
    except SparsebenchError as error:  # times are shown all the same
        failure = error
    if as_json:
        told = asdict(memory) if memory else None
        emit_json({"latency": asdict(timed) | {"differences": speedups(timed)}, "memory": told})
    else:
        _show(timed, memory)
    if failure:
        raise failure


def _show(timed: LatencyResult, memory: MemoryResult | None) -> None:
    """Print the result as tables."""
    from sparsebench.notebook import speedups

    faster = {one["phase"]: one for one in speedups(timed)}
    rows: list[list[Any]] = []
    for phase in timed.phases:
        if phase.side != "variant":
            continue
        one = faster.get(phase.phase)
        shown = f"{one['speedup']:.3f} [{one['speedup_low']:.3f}, {one['speedup_high']:.3f}]" if one else ""
        interval = f"[{phase.low_s * 1e3:.2f}, {phase.high_s * 1e3:.2f}]"
        rows.append(
            [phase.phase, f"{phase.median_s * 1e3:.2f}", interval, shown, phase.n, "" if phase.steady else "not steady"]
        )
    emit_table(["phase", "median ms", "95% interval", "speed-up [95%]", "n", ""], rows)
    if memory:
        emit_table(["phase", "peak, all ranks"], [[phase.phase, size(phase.peak_bytes)] for phase in memory.phases])
    facts = f"{timed.engine} ×{timed.ranks}, {timed.kernel}, {timed.threads} threads per rank, {timed.device}, {timed.dtype}"
    note("\n".join([facts, *timed.notes]))
