"""``sparsebench compare``: two measured variants, side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from sparsebench.cli.options import JSON, LEDGER_ALONE
from sparsebench.cli.output import emit_json, emit_table, format_score, note
from sparsebench.escape import visible
from sparsebench.ledger.compare import SideBySide, TaskComparison, side_by_side
from sparsebench.ledger.statistics import Metric
from sparsebench.paths import ledger_path
from sparsebench.units import size

VARIANT = (
    "MODEL/RECIPE, such as smollm2-135m/wanda/0.5, smollm2-135m/int8 or smollm2-135m/dense; or the beginning of its id."
)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=VARIANT)],
    b: Annotated[str, typer.Argument(metavar="B", help="The variant to compare with A.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    ledger: LEDGER_ALONE = None,
    as_json: JSON = False,
) -> None:
    """Compare two measured variants: scores on the same documents, size, time, memory.

    The difference is B minus A over the documents that both were scored on,
    with its 95% interval. The verdict is on B, at 5% after Holm's correction
    for the number of tasks. `detectable` is the smallest true difference that
    such a sample shows in four cases of five. Where no difference was detected,
    a smaller one may exist. `loss at most` is the largest loss that the
    documents leave possible (one-sided 95%). For a perplexity, both are
    percentages of A's.

    \b
    sparsebench compare smollm2-135m/dense smollm2-135m/wanda/0.5
    sparsebench compare minilm-l6/magnitude/row/50% minilm-l6/random/0.5
    sparsebench compare smollm2-135m/dense smollm2-135m/ria/2:4 --task piqa
    sparsebench compare smollm2-135m/int8 smollm2-135m/sparsegpt/50%/int8
    """
    pair = side_by_side(ledger_path(ledger), a, b, task or [])
    if as_json:
        named = {"a": {**asdict(pair.a), "name": pair.a.name}, "b": {**asdict(pair.b), "name": pair.b.name}}
        emit_json({**asdict(pair), **named})
        return
    _show_pair(pair)
    for text in pair.notes:
        note(text)


def _show_pair(pair: SideBySide) -> None:
    """Print the comparison as tables, leaving out those without rows."""
    scores = [_score_row(task, pair.tests) for task in pair.scores]
    sizes = [[row["format"], *_byte_cells(row)] for row in pair.sizes]
    several = len({row["machine"] for row in (*pair.latency, *pair.memory)}) > 1
    times = [_time_row(row, several) for row in pair.latency]
    memory = [[_setting(row, several), *_byte_cells(row)] for row in pair.memory]
    for letter, variant in (("A", pair.a), ("B", pair.b)):
        print(visible(f"{letter}  {variant.name}  ({variant.details})"))
    for heads, rows in (
        (["task", "A", "B", "B - A [95%]", "verdict on B", "detectable", "loss at most"], scores),
        (["bytes as", "A", "B", "B / A"], sizes),
        (["time, ms", "phase", "A", "B", "speed-up [95%]", "verdict on B"], times),
        (["peak memory", "A", "B", "B / A"], memory),
    ):
        if rows:
            print()
            emit_table(heads, rows)


def _byte_cells(row: dict[str, Any]) -> list[str]:
    return [size(row["a"]), size(row["b"]), f"{row['ratio']:.3f}"]


def _score_row(task: TaskComparison, tests: int) -> list[Any]:
    """Return a task's row: notes stand below its name, and what the correction for ``tests`` did below the verdict."""
    paired = task.paired
    interval = f"[{format_score(paired.low, '+')}, {format_score(paired.high, '+')}]"
    shift = f"{format_score(paired.difference, '+')} {interval}" if paired.p is not None else ""
    documents = f"{paired.n or min(task.n_a, task.n_b):,} documents" + (" drawn" if task.limited else "")
    name = "\n".join(filter(None, [task.task, f"{task.metric}, {documents}", task.note]))
    verdict = task.verdict or ""
    if paired.p is not None and task.p_holm is not None and paired.p < 0.05 <= task.p_holm:
        verdict += f"\n(p {paired.p:.2g}; {task.p_holm:.2g} as one of {tests} tests)"
    perplexity = task.a if Metric.named(task.metric).scale == "perplexity" else None
    limits = (None, None) if task.overrides.collapsed else (paired.detectable, paired.loss_at_most)
    formatted = [_limit(number, perplexity) for number in limits]
    return [name, format_score(task.a), format_score(task.b), shift, verdict, *formatted]


def _limit(number: float | None, perplexity: float | None) -> str:
    """Format a difference: in percent of ``perplexity``, or as it is where that is None."""
    return format_score(number) if number is None or perplexity is None else f"{number / perplexity:.2%}"


def _setting(row: dict[str, Any], with_machine: bool) -> str:
    machine = f"\n{row['machine']}" if with_machine else ""
    return f"{row['engine']} ×{row['ranks']} {row['dtype']} {row['workload']}{machine}"


def _time_row(row: dict[str, Any], with_machine: bool) -> list[Any]:
    interval = f" [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" if row["verdict"] else ""
    speedup = f"{row['speedup']:.2f}{interval}"
    return [
        _setting(row, with_machine),
        row["phase"],
        f"{row['a_ms']:.1f}",
        f"{row['b_ms']:.1f}",
        speedup,
        row["verdict"] or "not paired",
    ]
