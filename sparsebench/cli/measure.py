"""``sparsebench measure``: memory and latency of one model, paired with another when ``--against`` is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sparsebench import bounded, devices, processor
from sparsebench.cli import options
from sparsebench.cli.output import emit_json, emit_table, note
from sparsebench.cli.source import open_model
from sparsebench.notebook import Measurement, measure_pair
from sparsebench.runtime import Setting, Workload, check_model
from sparsebench.runtime.engines import engines
from sparsebench.units import size

ENGINE = typer.Option(
    help="deepspeed, deepspeed-zero3, hf, sparse, skip, llamacpp, or one added by a plugin.",
    autocompletion=options.names_of("runtime.engines", "engines"),
)
PROCESSES_HELP = "Processes that time the models, each loading them anew. A wide interval adds half as many."


def measure(
    source: options.SOURCE,
    against: Annotated[
        str | None, typer.Option(help="The baseline. Default: the model itself, which shows the noise floor.")
    ] = None,
    engine: Annotated[str, ENGINE] = "deepspeed",
    ranks: Annotated[int, options.count("Processes that share the model.", maximum=bounded.MOST_PROCESSES)] = 1,
    batch: Annotated[int, options.count("Sequences at once.")] = 1,
    prompt: Annotated[int, options.count("Tokens in each prompt.")] = 128,
    generate: Annotated[int, options.count("New tokens per sequence.")] = 16,
    samples: Annotated[int, options.count("Timed samples per phase and model, over all processes.", minimum=4)] = 24,
    processes: Annotated[int, options.count(PROCESSES_HELP, maximum=bounded.MOST_PROCESSES)] = 5,
    family: options.FAMILY = None,
    dtype: options.DTYPE = "auto",
    compute_dtype: options.COMPUTE_DTYPE = "auto",
    device: options.DEVICE = "auto",
    offline: options.OFFLINE = False,
    as_json: options.JSON = False,
) -> None:
    """Measure memory and latency of a model under an engine.

    Close other programs first: their load changes the times.

    \b
    sparsebench measure half --against path:my-model
    sparsebench measure half.packed --against path:my-model --engine sparse
    sparsebench measure hf:org/name@main --ranks 2 --batch 4 --prompt 256
    """
    options.check_name("engine", engine, engines())
    workload = Workload(batch, prompt, generate)

    def refuse(config: Mapping[str, Any]) -> None:
        check_model(config, Setting(engine, ranks, workload))

    model = open_model(source, family, dtype, offline, refuse)
    baseline = open_model(against, family, dtype, offline, refuse) if against else model
    device = devices.resolve(device)
    precision = processor.compute_dtype(model.dtype, compute_dtype, device)
    note(f"timing {model.name} against {baseline.name if against else 'itself'}, then measuring its memory …", "dim")
    measured = measure_pair(
        model, baseline, Setting(engine, ranks, workload, precision, samples, processes=processes, device=device)
    )
    if as_json:
        latency = asdict(measured.latency) | {"differences": measured.speedups()}
        emit_json({"latency": latency, "memory": asdict(measured.memory) if measured.memory else None})
    else:
        _show(measured)
    if measured.failure:
        raise measured.failure


def _show(measured: Measurement) -> None:
    """Print the result as tables."""
    rows: list[list[Any]] = []
    for row in measured.rows():
        times = [f"{row['ms']:.2f}", f"[{row['ms_low']:.2f}, {row['ms_high']:.2f}]"]
        speedup = (
            f"{row['speedup']:.3f} [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]" if "speedup" in row else ""
        )
        rows.append([row["phase"], *times, speedup, "" if row["steady"] else "not steady"])
    emit_table(["phase", "median ms", "95% interval", "speed-up [95%]", ""], rows)
    if measured.memory:
        peaks = [[phase.phase, size(phase.peak_bytes)] for phase in measured.memory.phases]
        emit_table(["phase", "peak, all ranks"], peaks)
    latency = measured.latency
    threads = f"{latency.threads} threads per rank, {latency.device}, {latency.dtype}"
    note("\n".join([f"{latency.engine} ×{latency.ranks}, {latency.kernel}, {threads}", *latency.notes]))
