"""``sparsebench inspect``: what fraction of one model's parameters is far from zero."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sparsebench import bounded
from sparsebench.cli.options import DTYPE, FAMILY, JSON, OFFLINE, SOURCE
from sparsebench.cli.output import emit_json, emit_table, note
from sparsebench.cli.source import open_model
from sparsebench.manifest.schema import ManifestStructure
from sparsebench.models.files import quantized
from sparsebench.models.shape.topology import prunable_share
from sparsebench.structure import GroupSummary, assess, summary

USUAL = ManifestStructure()


def inspect(
    source: SOURCE,
    family: FAMILY = None,
    dtype: DTYPE = "auto",
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=bounded.MOST_ITEMS, help="Threshold on |w| / rms; repeatable. Default: 0.01, 0.1, 0.5 and 1."
        ),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Show what share of a model's weights is far from zero: overall, by layer and by kind of module.

    \b
    sparsebench inspect path:my-model
    sparsebench inspect hf:org/name@main --threshold 0.05 --json
    """
    model = open_model(source, family, dtype, offline)
    result = assess(model.folder, model.family, USUAL.absolute, threshold or USUAL.relative)
    share = prunable_share(quantized.open_checkpoint(model.folder), model.family)
    if as_json:
        rows = [asdict(row) for row in summary(result)]
        totals = {"summary": rows, "prunable_share": share}
        thresholds = {"absolute": result.absolute, "relative": result.relative}
        emit_json((asdict(result) if tensors else {"family": model.family, **thresholds}) | totals)
        return
    note(f"{share:.1%} of the parameters are prunable")
    headers = [f"≥{multiple:g}" for multiple in result.relative]
    if tensors:
        lines: list[list[object]] = []
        for tensor in [tensor for tensor in result.tensors if tensor.count]:
            far_from_zero = [1 - below / tensor.count for below in tensor.below_relative]
            percents = _percent([tensor.zeros / tensor.count, *far_from_zero])
            lines.append([tensor.name, tensor.kind, tensor.count, *percents])
        emit_table(["tensor", "kind", "weights", "zeros", *headers], lines)
        return
    stacks = model.family == "encoder-decoder"
    emit_table(
        ["what", "weights", "zeros", *headers],
        [[_what(row, stacks), row.weights, *_percent([row.zeros, *row.far_from_zero])] for row in summary(result)],
        title=f"{model.name}: share of weights with |w| at or above a multiple of their tensor's rms",
    )


def _what(row: GroupSummary, with_stack: bool) -> str:
    stack = f"{row.side} " if with_stack and row.side and row.scope in ("layer", "kind") else ""
    if row.scope == "layer":
        return f"{stack}layer {row.layer}"
    return f"{stack}{row.kind}" if row.scope == "kind" else row.scope


def _percent(shares: list[float]) -> list[str]:
    return [f"{share:.2%}" for share in shares]
