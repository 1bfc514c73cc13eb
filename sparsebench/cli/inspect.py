"""``sparsebench inspect``: what fraction of one model's parameters is far from zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sparsebench.cli.options import DTYPE, FAMILY, JSON, OFFLINE, ONE_MODEL, SOURCE, Precision

if TYPE_CHECKING:
    from sparsebench.structure.summary import GroupSummary

ABSOLUTE = (1e-4, 1e-3, 1e-2, 1e-1)
RELATIVE = (0.01, 0.1, 0.5, 1.0)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=ONE_MODEL)(inspect)


def inspect(
    source: SOURCE,
    family: FAMILY = None,
    dtype: DTYPE = Precision.auto,
    threshold: Annotated[
        list[float] | None, typer.Option("--threshold", help="Thresholds on |w| / rms; repeatable.", show_default=False)
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor, not only layers and kinds.")] = False,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """What share of a model's weights is far from zero: overall, by layer, by kind of module.

    \b
    sparsebench inspect path:my-model
    sparsebench inspect hf:org/name@main --threshold 0.05 --json
    """
    from dataclasses import asdict

    from sparsebench.cli.output import emit_json, emit_table
    from sparsebench.plan.single import single
    from sparsebench.structure import assess, summary

    model = single(source, family, dtype.value, offline)
    result = assess(model.folder, model.family, ABSOLUTE, tuple(threshold or RELATIVE))
    if as_json:
        rows = [asdict(row) for row in summary(result)]
        emit_json(asdict(result) | {"summary": rows} if tensors else {"family": model.family, "summary": rows})
        return
    heads = [f"≥{t:g}" for t in result.relative]
    if tensors:
        emit_table(
            ["tensor", "kind", "weights", "zeros", *heads],
            [
                [
                    t.name,
                    t.kind,
                    t.count,
                    _share(t.zeros / t.count),
                    *(_share(1 - c / t.count) for c in t.below_relative),
                ]
                for t in result.tensors
                if t.count
            ],
        )
        return
    emit_table(
        ["what", "weights", "zeros", *heads],
        [
            [
                _what(row, model.family == "encoder-decoder"),
                row.weights,
                _share(row.zeros),
                *map(_share, row.far_from_zero),
            ]
            for row in summary(result)
        ],
        title=f"{model.name}: share of weights with |w| at or above a multiple of their tensor's rms",
    )


def _what(row: GroupSummary, sides: bool) -> str:
    side = f"{row.side} " if sides and row.side and row.scope in ("layer", "kind") else ""
    if row.scope == "layer":
        return f"{side}layer {row.layer}"
    return f"{side}{row.kind}" if row.scope == "kind" else row.scope


def _share(value: float) -> str:
    return f"{value:.2%}"
