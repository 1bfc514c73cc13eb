"""``sparsebench score``: benchmark scores of one model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebench import bounded, devices
from sparsebench.benchmarks import KINDS, ScoreResult, TaskSpec, all_tasks, is_task, task_names
from sparsebench.cli import options
from sparsebench.cli.output import emit_json, emit_table, end_with, note
from sparsebench.cli.source import open_model
from sparsebench.errors import SparsebenchError, UserError
from sparsebench.ledger import scored
from sparsebench.manifest.problems import did_you_mean
from sparsebench.models.shape.topology import refuse_text
from sparsebench.notebook import score_tasks
from sparsebench.plan.single import SingleModel, manifest_tasks
from sparsebench.sources import Cache

SOURCE = typer.Argument(help="A folder, an alias (see models), hf:…, path:…, wheel:….")
TASK = typer.Option(help="A task name; repeatable.", autocompletion=options.names_of("benchmarks", "all_tasks"))
MANIFEST = options.reads_file(
    "An experiment file. Its tasks for this family are scored too, with their settings and your own data."
)
LIMIT = options.count("Score only this many documents, drawn at random; always the same ones.")
NUM_FEWSHOT = options.count("Examples in the prompt.", 0, bounded.MOST_PROCESSES)
BATCH = options.count("Sequences per batch of lm-eval's own loop. Default: the fastest batches.")
LABEL = typer.Option(help="The name of a classification head's output; repeat it in the outputs' order.")
DATA = typer.Option(help="A source, such as path:FILE, in place of the data of stsb_sts or mrpc_pair.")
LIST = typer.Option("--list", help="List sparsebench's own tasks, with what they measure.")
AGAINST = typer.Option(help="Show paired differences and verdicts against this model, such as the dense one.")
OUTCOMES = options.writes_file("Write every document's outcome to this file, one JSON object a line.")
DOCUMENTS = typer.Option("--documents", help="With --json: include every document's outcome.")


def score(
    source: Annotated[str | None, SOURCE] = None,
    task: Annotated[list[str] | None, TASK] = None,
    manifest: Annotated[Path | None, MANIFEST] = None,
    limit: Annotated[int | None, LIMIT] = None,
    num_fewshot: Annotated[int | None, NUM_FEWSHOT] = None,
    batch: Annotated[int | None, BATCH] = None,
    label: Annotated[list[str] | None, LABEL] = None,
    data: Annotated[str | None, DATA] = None,
    list_them: Annotated[bool, LIST] = False,
    against: Annotated[str | None, AGAINST] = None,
    outcomes: Annotated[Path | None, OUTCOMES] = None,
    documents: Annotated[bool, DOCUMENTS] = False,
    family: options.FAMILY = None,
    dtype: options.DTYPE = "auto",
    compute_dtype: options.COMPUTE_DTYPE = "auto",
    device: options.DEVICE = "auto",
    offline: options.OFFLINE = False,
    as_json: options.JSON = False,
) -> None:
    """Score a model on benchmarks, with 95% intervals. With --against, compare it with another on the same documents.

    `detectable` is the smallest true difference that such a sample shows in
    four cases of five. Without --against it assumes that two models differ on
    a tenth of the answers.

    \b
    sparsebench score --list
    sparsebench score path:my-model --task piqa --task arc_easy --limit 200
    sparsebench score half --against path:my-model --task piqa
    sparsebench score path:my-model --manifest experiments.yaml
    """
    if offline:  # lm-eval and datasets ask the hub themselves; they read this when they are imported
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if list_them:
        _list_tasks(as_json)
        return
    source = _check_request(source, task or [], manifest)
    if not task and (num_fewshot is not None or batch or data):
        raise UserError("--num-fewshot, --batch and --data are for a --task", "set them in the manifest")
    if documents and not as_json:
        raise UserError("--documents alone shows nothing", "add --json, or write them to a file: --outcomes FILE")
    model = open_model(source, family, dtype, offline, refuse_text)
    other = open_model(against, family, dtype, offline, refuse_text) if against else None
    cache, device = Cache(offline=offline), devices.resolve(device)
    labels = tuple(label) if label else None
    specs = [TaskSpec(name, limit, num_fewshot, labels, data, batch) for name in task or ()]
    for spec in manifest_tasks(manifest, model, cache, labels) if manifest else ():
        specs.append(replace(spec, labels=labels, limit=limit or spec.limit))
    if other is None and (asking := [spec.task for spec in specs if spec.divergence]):
        note(f"{', '.join(asking)}: no divergence without the dense model (--against MODEL)")
    failures: list[str] = []

    def results_of(scored_model: SingleModel, dense: Path | None = None) -> dict[str, ScoreResult]:
        def add_failure(name: str, error: SparsebenchError) -> None:
            failures.append(f"{scored_model.name}, {name}: {error}")

        return score_tasks(scored_model, specs, device, add_failure, compute_dtype, cache, dense)

    baseline = results_of(other) if other else None
    results = results_of(model, other.folder if other else None)
    _show(scored.rows(results, baseline), model.name, as_json, results, documents)
    # Written after the scores are shown: a full disk does not lose them.
    if outcomes:
        scored.write_outcomes(outcomes, results, baseline)
    end_with(failures)


def _show(
    rows: list[dict[str, Any]], title: str, as_json: bool, results: Mapping[str, ScoreResult], documents: bool
) -> None:
    """Show a row for each task; in JSON with every document's outcome if ``documents``."""
    if as_json:
        emit_json([row | scored.protocol_and_outcomes(results[row["task"]]) if documents else row for row in rows])
    elif rows:
        emit_table(list(rows[0]), [list(row.values()) for row in rows], title=title)


def _check_request(source: str | None, tasks: list[str], manifest: Path | None) -> str:
    """Return ``source``, which is then not None.

    Raises UserError where there is no model or no task, and for a task that does not exist or that a manifest must
    describe.
    """
    if not source:
        raise UserError("no model is given", "such as: sparsebench score path:my-model --task piqa")
    if not tasks and not manifest:
        raise UserError("no --task is given", "see the tasks: sparsebench score --list")
    name = next((name for name in tasks if not is_task(name)), None)
    if name is None:
        return source
    if name in KINDS:
        way_out = "sparsebench init my.yaml --model MODEL --data FILE, then: sparsebench score MODEL --manifest my.yaml"
        raise UserError(f"--task {name}: it scores data of your own, which a manifest names", way_out)
    hint = did_you_mean(name, task_names()) or "see the tasks: sparsebench score --list"
    raise UserError(f"--task {name}: no such task", hint)


def _list_tasks(as_json: bool) -> None:
    heads = ["task", "family", "metric", "what"]
    rows = [[name, ", ".join(row.families), row.metric, row.description] for name, row in all_tasks().items()]
    if as_json:
        emit_json([dict(zip(heads, row, strict=True)) for row in rows])
    else:
        emit_table(heads, rows)
