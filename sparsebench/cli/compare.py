"""``sparsebench compare``: two variants side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebench.cli.options import JSON, LEDGER
from sparsebench.cli.output import emit_json, emit_table, figure, note, size
from sparsebench.escape import visible

if TYPE_CHECKING:
    from sparsebench.ledger.compare import Scored, SideBySide

VARIANT = "MODEL/METHOD/SPARSITY, such as smollm2-135m/wanda/0.5; MODEL/dense; or the beginning of its id."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=VARIANT)],
    b: Annotated[str, typer.Argument(metavar="B", help="The variant that is held against A.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    ledger: LEDGER = None,
    as_json: JSON = False,
) -> None:
    """Compare two measured variants: scores on the same documents, size, time, memory.

    The difference is B minus A over the documents that both were shown, with
    its 95% interval. The verdict is on B, at 5% after a correction for the
    number of tasks (Holm). `detectable` is the smallest true difference that
    such a sample shows in four cases of five: where no difference was
    detected, a smaller one may well be there.

    \b
    sparsebench compare smollm2-135m/dense smollm2-135m/wanda/0.5
    sparsebench compare minilm-l6/magnitude/row/50% minilm-l6/random/0.5
    sparsebench compare smollm2-135m/dense smollm2-135m/ria/2:4 --task piqa
    """
    from sparsebench.ledger.compare import side_by_side
    from sparsebench.plan.preflight import ledger_path

    found = side_by_side(ledger_path(ledger), a, b, task or [])
    if as_json:
        names = {side: {"name": getattr(found, side).name} for side in ("a", "b")}
        emit_json({**asdict(found), **{side: asdict(getattr(found, side)) | names[side] for side in names}})
        return
    _show(found)
    for text in found.notes:
        note(text)


def _show(found: SideBySide) -> None:
    """The tables that a person reads, those without rows left out."""
    scores = [_score(one) for one in found.scores]
    sizes = [[row["format"], size(row["a"]), size(row["b"]), f"{row['ratio']:.3f}"] for row in found.sizes]
    times = [_time(row) for row in found.latency]
    memory = [
        [_engine(row), row["workload"], size(row["a"]), size(row["b"]), f"{row['ratio']:.3f}"] for row in found.memory
    ]
    for side, one in (("A", found.a), ("B", found.b)):
        print(visible(f"{side}  {one.name}  ({one.details})"))
    for heads, rows in (
        (["task", "A", "B", "B - A [95%]", "verdict on B", "detectable"], scores),
        (["bytes as", "A", "B", "B / A"], sizes),
        (["time, ms", "phase", "A", "B", "speed-up [95%]", "verdict on B"], times),
        (["peak memory", "workload", "A", "B", "B / A"], memory),
    ):
        if rows:
            print()
            emit_table(heads, rows)


def _score(one: Scored) -> list[Any]:
    """A task's line; what is odd about it stands below its name."""
    pair = one.paired
    ends = f"[{figure(pair.low, '+')}, {figure(pair.high, '+')}]"
    shift = f"{figure(pair.difference, '+')} {ends}" if pair.p is not None else ""
    documents = f"{pair.n or min(one.n_a, one.n_b):,} documents" + (", first" if one.limited else "")
    name = "\n".join(filter(None, [f"{one.task}", f"{one.metric}, {documents}", one.note]))
    return [name, figure(one.a), figure(one.b), shift, one.verdict or "", figure(pair.detectable)]


def _engine(row: dict[str, Any]) -> str:
    return f"{row['engine']} ×{row['ranks']} {row['dtype']}"


def _time(row: dict[str, Any]) -> list[Any]:
    interval = f" [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" if row["verdict"] else ""
    setting, shown = f"{_engine(row)} {row['workload']}", f"{row['speedup']:.2f}{interval}"
    return [setting, row["phase"], f"{row['a_ms']:.1f}", f"{row['b_ms']:.1f}", shown, row["verdict"] or "not paired"]
