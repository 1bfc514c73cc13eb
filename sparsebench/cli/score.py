"""``sparsebench score``: benchmark scores of one model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebench import bounded
from sparsebench.cli.options import (
    COMPUTE_DTYPE,
    DEVICE,
    DTYPE,
    FAMILY,
    JSON,
    OFFLINE,
    file_to_read,
    file_to_write,
    names_of,
)
from sparsebench.cli.output import emit_json, emit_table, note, open_model
from sparsebench.errors import UserError

if TYPE_CHECKING:
    from sparsebench.errors import SparsebenchError


def score(
    source: Annotated[
        str | None, typer.Argument(help="A folder, an alias (see models), hf:…, path:…, wheel:….")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task name; repeatable.", autocompletion=names_of("benchmarks", "all_tasks")),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="An experiment file. Its tasks for this family are scored too, with their settings and your own data.",
            metavar="FILE",
            parser=file_to_read,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=bounded.MANY,
            help="Score only this many documents, drawn at random; always the same ones.",
        ),
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, max=bounded.FEW, help="Examples in the prompt.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=bounded.MANY,
            help="Sequences per batch of lm-eval's own loop. Default: the fastest batches.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="The name of a classification head's output; repeat it in the outputs' order."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A source, such as path:FILE, in place of the data of stsb_sts or mrpc_pair.")
    ] = None,
    list_them: Annotated[
        bool, typer.Option("--list", help="List sparsebench's own tasks, with what they measure.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="Show paired differences and verdicts against this model, such as the dense one.")
    ] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option(
            help="Write every document's outcome to this file, one JSON object a line.",
            metavar="FILE",
            parser=file_to_write,
        ),
    ] = None,
    documents: Annotated[
        bool, typer.Option("--documents", help="With --json: include every document's outcome.")
    ] = False,
    family: FAMILY = None,
    dtype: DTYPE = "auto",
    compute_dtype: COMPUTE_DTYPE = "auto",
    device: DEVICE = "auto",
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Score a model on benchmarks, with 95% intervals. With --against, compare it with another on the same documents.

    `detectable` is the smallest true difference that such a sample shows in
    four cases of five. Without --against it assumes that two models differ on
    a tenth of the answers.

    \b
    sparsebench score --list
    sparsebench score path:my-model --task piqa --task arc_easy --limit 200
    sparsebench score pruned/0.50 --against path:my-model --task piqa
    sparsebench score path:my-model --manifest experiments.yaml
    """
    if offline:  # lm-eval and datasets ask the hub themselves; they read this when they are imported
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from sparsebench import benchmarks, devices, sources
    from sparsebench.ledger import scored
    from sparsebench.manifest.problems import did_you_mean
    from sparsebench.models.shape.topology import refuse_text
    from sparsebench.notebook import results
    from sparsebench.plan.single import tasks

    if list_them:
        heads = ["task", "family", "metric", "what"]
        known = [
            [name, ", ".join(row.families), row.metric, row.description] for name, row in benchmarks.all_tasks().items()
        ]
        emit_json([dict(zip(heads, row, strict=True)) for row in known]) if as_json else emit_table(heads, known)
        return
    for name in task or []:
        if not benchmarks.known(name):
            raise UserError(f"--task {name}: no such task", did_you_mean(name, benchmarks.names()) or None)
    labels = tuple(label) if label else None
    specs = [benchmarks.TaskSpec(name, limit, num_fewshot, labels, data, batch) for name in task or []]
    if not source or not (specs or manifest):
        raise UserError("a model and at least one --task are needed", "see the tasks: sparsebench score --list")
    if manifest and not task and (num_fewshot is not None or batch or data):
        raise UserError("--num-fewshot, --batch and --data are for a --task", "set them in the manifest")
    if documents and not as_json:
        raise UserError("--documents alone shows nothing", "add --json, or write them to a file: --outcomes FILE")
    cache = sources.Cache(offline=offline)
    models = [open_model(text, family, dtype, offline, refuse_text) for text in (against, source) if text]
    if manifest:
        asked = tasks(manifest, models[-1], cache)
        specs += [replace(spec, labels=labels, limit=limit or spec.limit) for spec in asked]
    failures: list[str] = []
    there = devices.resolve(device)
    found = []
    for model in models:

        def failing(name: str, error: SparsebenchError, of: str = model.name) -> None:
            failures.append(f"{of}, {name}: {error}")

        found.append(results(model, specs, model.calculated(compute_dtype, there), there, failing, cache))
    dense = found[0] if against else None
    rows = scored.rows(found[-1], dense)
    if as_json:
        emit_json([row | (scored.whole(found[-1][row["task"]]) if documents else {}) for row in rows])
    elif rows:
        emit_table(list(rows[0]), [list(row.values()) for row in rows], title=models[-1].name)
    # Written after the scores are shown: a full disk does not lose them.
    if outcomes:
        outcomes.parent.mkdir(parents=True, exist_ok=True)
        scored.write_outcomes(outcomes, found[-1], dense)
    for failure in failures:
        note(failure, "red")
    if failures:
        raise typer.Exit(1)
