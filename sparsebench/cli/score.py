"""``sparsebench score``: benchmark scores of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebench.cli.options import DTYPE, FAMILY, JSON, OFFLINE, ONE_MODEL, Precision

if TYPE_CHECKING:
    from sparsebench.benchmarks import ScoreResult, TaskSpec
    from sparsebench.errors import SparsebenchError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=ONE_MODEL)(score)


def score(
    source: Annotated[
        str | None, typer.Argument(help="A folder, or hf:…, path:…, wheel:….", show_default=False)
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="A task name; repeatable.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first documents.", show_default=False)] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in the prompt.", show_default=False)] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="What a classification head's outputs mean, in order.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="A file in place of the data of stsb_sts or mrpc_pair.", show_default=False),
    ] = None,
    list_them: Annotated[
        bool, typer.Option("--list", help="List the tasks that need no hub, with what they measure.")
    ] = False,
    documents: Annotated[bool, typer.Option("--documents", help="With --json: every document's outcome.")] = False,
    family: FAMILY = None,
    dtype: DTYPE = Precision.auto,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Score a model on benchmarks.

    \b
    sparsebench score --list
    sparsebench score path:my-model --task piqa --task arc_easy --limit 200
    """
    from sparsebench import benchmarks, sources
    from sparsebench.cli.output import emit_json, emit_table, note
    from sparsebench.errors import UserError
    from sparsebench.plan.single import single

    if list_them:
        heads = ["task", "family", "metric", "what"]
        rows = [[name, ", ".join(row.families), row.metric, row.description] for name, row in benchmarks.TASKS.items()]
        emit_json([dict(zip(heads, row, strict=True)) for row in rows]) if as_json else emit_table(heads, rows)
        return
    if not source or not task:
        raise UserError("a model and at least one --task are needed", "see the tasks: sparsebench score --list")
    unknown = [name for name in task if not benchmarks.known(name)]
    if unknown:
        from sparsebench.manifest.problems import did_you_mean

        raise UserError(f"--task {unknown[0]}: no such task", did_you_mean(unknown[0], benchmarks.names()) or None)
    model = single(source, family, dtype.value, offline)
    specs = [benchmarks.TaskSpec(name, limit, num_fewshot, tuple(label) if label else None, data) for name in task]
    rows_found: list[dict[str, Any]] = []
    failures: list[str] = []

    def emit(spec: TaskSpec, result: ScoreResult | SparsebenchError) -> None:
        if isinstance(result, Exception):
            failures.append(f"{spec.task}: {result}")
        else:
            rows_found.append(_row(result, documents))

    benchmarks.score(model.folder, model.family, specs, sources.Cache(), emit)
    if as_json:
        emit_json(rows_found)
    elif rows_found:
        emit_table(list(rows_found[0]), [list(row.values()) for row in rows_found], title=model.name)
    for failure in failures:
        note(failure, "red")
    if failures:
        raise typer.Exit(1)


def _row(result: ScoreResult, documents: bool) -> dict[str, Any]:
    from dataclasses import asdict

    row = asdict(result)
    outcomes, protocol = row.pop("outcomes"), row.pop("protocol")
    return row | ({"protocol": protocol, "outcomes": outcomes} if documents else {})
