"""The variants of a ledger that fit limits of size and loss, with the commands that make and export them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.errors import UserError
from sparsebench.ledger import query, sqlfiles
from sparsebench.ledger.naming import MeasuredVariant, measured_variants, resolve_variant
from sparsebench.ledger.query import Session
from sparsebench.manifest.nodes import flow
from sparsebench.manifest.problems import did_you_mean, one_of
from sparsebench.paths import ledger_path
from sparsebench.sources.reference import Reference
from sparsebench.steps.calibration import DEFAULT
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import recorded

ChosenRow = dict[str, Any]


def choose(
    ledger: Path, model: str, share: float | None = None, loss: float | None = None, engine: str | None = None
) -> list[ChosenRow]:
    """Return the scored variants of a model, those that fit first and the best of these first (``choose.sql``).

    ``share`` is the most of dense's bytes, ``loss`` the most points (percent of a perplexity) on any task. A row has
    the columns of the query, and ``name``, ``make`` and ``export`` (None for what only sparsebench runs). Raises
    UserError for a model or an ``engine`` without such variants.
    """
    with query.session(ledger) as ask:
        variants = measured_variants(ask)
        models = sorted({variant.model for variant in variants})
        if model not in models:
            raise UserError(f"no model {model!r} in the ledger", did_you_mean(model, models) or one_of(models))
        parameters = {"model": model, "share": share, "loss": loss, "engine": engine}
        rows = ask(sqlfiles.read("choose"), parameters).dicts()
        ids = [row["variant_id"] for row in rows]
        steps, precisions = steps_of(ask, ids), precisions_of(ask, ids)
    if not rows:
        timed = f" and timed in {engine}" if engine else ""
        raise UserError(
            f"no variant of {model} was scored, sized{timed}, on a task that dense does better than chance",
            'see what was measured: sparsebench sql "select distinct model, method, task, engine from results"',
        )
    ledger_option = f" --ledger {shlex.quote(str(ledger))}" if ledger != ledger_path(None) else ""
    for row in rows:
        row["name"] = _name(row, variants)
        row["make"] = make_command(row, steps.get(row["variant_id"], []), precisions.get(row["variant_id"]))
        format_option = f" --format {row['format']}" if row["format"] else ""
        command = f"sparsebench export {shlex.quote(row['name'])}{format_option}{ledger_option} --out {_folder(row)}"
        row["export"] = None if row["ours"] else command
    return rows


def make_command(row: ChosenRow, steps: Sequence[Step], compute_dtype: str | None = None) -> str:
    """Return the `sparsebench apply` that makes a variant again, by its columns in the view ``variants`` and its steps."""
    words = ["sparsebench", "apply", _source(row["source"]), *map(_step, steps), "--out", _folder(row)]
    words += ["--seed", str(row["seed"])] if row["seed"] else []
    words += ["--dtype", row["dtype"]] if row["dtype"] != "auto" else []
    words += ["--compute-dtype", compute_dtype] if compute_dtype else []
    if row["calibration"] and (text := _calibration(row["calibration"])):
        words += ["--calibration", text]
    return shlex.join(words)


def _name(row: ChosenRow, variants: Sequence[MeasuredVariant]) -> str:
    """Return the shortest name of a variant: its recipe's words, or the beginning of its id where they fit several."""
    name = next(variant.name for variant in variants if variant.id == row["variant_id"])
    try:
        return name if resolve_variant(name, variants).id == row["variant_id"] else str(row["variant_id"])[:10]
    except UserError:
        return str(row["variant_id"])[:10]


def _folder(row: ChosenRow) -> str:
    """Return a name for the variant's folder."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", f"{row['model']} {row['recipe']}").strip("-")


def steps_of(ask: Session, variant_ids: Sequence[str]) -> dict[str, list[Step]]:
    """Return the steps of each of these variants in order, by the variant's id; those without any are left out."""
    statement = "FROM base.steps WHERE variant_id IN (SELECT unnest($ids::VARCHAR[])) ORDER BY variant_id, position"
    steps: dict[tuple[str, int], ChosenRow] = {}
    for row in ask(statement, {"ids": list(variant_ids)}).dicts():
        key = (row["variant_id"], row["position"])
        step = steps.setdefault(key, {"verb": row["step"], "name": row["name"], "settings": {}})
        if row["field"] is not None:
            step["settings"][row["field"]] = json.loads(row["value"])
    by_variant: dict[str, list[Step]] = {}
    for (variant_id, _), step in steps.items():
        by_variant.setdefault(variant_id, []).append(recorded(step))
    return by_variant


def precisions_of(ask: Session, variant_ids: Sequence[str]) -> dict[str, str]:
    """Return the precision of calculations that the manifest named for each of these variants, where it named one."""
    return dict(ask(sqlfiles.read("precisions"), {"ids": list(variant_ids)}).rows)


def _step(step: Step) -> str:
    """Return a step as `apply` takes it, with the settings that are not the defaults."""
    settings = {key: _without_content(value) for key, value in step.settings.unusual().items()}
    return flow({step.verb: step.name, **settings})[1:-1]


def _without_content(value: Any) -> Any:
    """Return a setting with its files as a person names them, without the hash of their content."""
    if isinstance(value, list):
        return [*map(_without_content, value)]
    return Reference.parse(value).source if isinstance(value, str) else value


def _source(text: str) -> str:
    """Return a model's source as a person writes it: its alias where it has one."""
    return next((alias for alias in sources.KNOWN if sources.parse(alias).text == text), text)


def _calibration(described: str) -> str:
    """Return the option for a calibration, as ``describe_calibration`` writes it; empty for the default one."""
    try:
        *names, size, _, _ = shlex.split(described)
    except ValueError:  # records of before quote no name
        *names, size, _, _ = described.split(" ")
    samples, _, length = size.partition("×")
    columns = dict(zip(("source", "field", "target"), names, strict=False))
    if columns["source"] == DEFAULT.source.partition("#sha256=")[0]:
        del columns["source"]
        if columns.get("field") == DEFAULT.field:
            del columns["field"]
    option = columns | ({"samples": int(samples)} if int(samples) != DEFAULT.samples else {})
    return flow(option | ({"length": int(length)} if length.isdecimal() else {}))[1:-1]
