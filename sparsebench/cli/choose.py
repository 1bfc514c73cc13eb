"""``sparsebench choose``: the measured variants that are small and good enough."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsebench.cli.options import JSON, LEDGER_ALONE, check_name, names_of
from sparsebench.cli.output import emit_json, emit_table, note
from sparsebench.errors import UserError
from sparsebench.ledger.choose import choose as judged_variants
from sparsebench.manifest.schema import PERCENT
from sparsebench.paths import ledger_path
from sparsebench.runtime.engines import engines

ENGINE = typer.Option(help="Only what was timed in this engine.", autocompletion=names_of("runtime.engines", "engines"))
SMALLEST_SHOWN = 3
"""The number of variants that are shown where none fits."""


def choose(
    model: Annotated[str, typer.Option(help="The model, by its name in the manifest.")],
    max_bytes: Annotated[
        str | None, typer.Option(help="The largest file, as a share of dense's: 60% or 0.6. Default: any.")
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="The largest loss on any task, in points (percent of a perplexity). Default: none is shown, or only one "
            "shown to be below a point."
        ),
    ] = None,
    engine: Annotated[str | None, ENGINE] = None,
    ledger: LEDGER_ALONE = None,
    as_json: JSON = False,
) -> None:
    """List the measured variants that fit, smallest file first, with the commands that make and export them.

    Of files that differ by less than a hundredth of dense's, the one that loses
    less comes first: the rule of the report's first table. `loss` is the largest
    over all tasks, as measured; `shown` names the tasks on which a loss is more
    than chance. The exit code is 1 where none fits.

    \b
    sparsebench choose --model my-bert --max-bytes 60% --max-loss 2
    sparsebench choose --model smollm2-135m --engine sparse --json
    """
    if max_loss is not None and not 0 <= max_loss <= 100:
        raise UserError(f"--max-loss {max_loss:g}: not a number of points", "from 0 to 100")
    if engine is not None:
        check_name("engine", engine, engines())
    rows = judged_variants(ledger_path(ledger), model, _share_of_bytes(max_bytes), max_loss, engine)
    fitting_rows = [row for row in rows if row["fits"]]
    if as_json:
        emit_json(fitting_rows)
    else:
        if not fitting_rows:
            note("no variant fits; the smallest are:")
        _show(fitting_rows or [row for row in rows if row["scored"]][:SMALLEST_SHOWN])
        for row in fitting_rows:
            note(f"{row['words']}: {row['export'] or 'only sparsebench runs it'}\n  made by: {row['make']}")
        # Variants of other calibration or seed have the same words.
        if left_out := dict.fromkeys(row["words"] for row in rows if row["meets"] and not row["scored"]):
            note(f"scored on fewer tasks than others of their kind, and left out: {', '.join(left_out)}")
    if not fitting_rows:
        raise typer.Exit(1)


def _show(rows: list[dict[str, object]]) -> None:
    shown = []
    for row in rows:
        speedup = "none shown" if row["timed"] else ""
        if row["speedup"]:
            speedup = f"×{row['speedup']:.2f} ({row['engine']})"
        shown.append([row["words"], f"{row['share']:.0%}", f"{row['loss']:.2f}", row["what"] or "none", speedup])
    emit_table(["variant", "of dense's bytes", "loss", "shown", "speed-up"], shown)


def _share_of_bytes(text: str | None) -> float | None:
    if text is None:
        return None
    percent = PERCENT.fullmatch(text)
    try:
        share = float(percent[1]) / 100 if percent else float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UserError(f"--max-bytes {text}: not a share of dense's bytes", "such as 60% or 0.6")
    return share
