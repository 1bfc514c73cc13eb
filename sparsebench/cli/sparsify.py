"""``sparsebench sparsify``: sparsified versions of one model, one folder each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import DTYPE, FAMILY, JSON, OFFLINE, SOURCE, Precision


class Form(StrEnum):
    """What is written."""

    dense = "dense"
    packed = "packed"


class Competition(StrEnum):
    """What weights compete with."""

    whole = "global"
    layer = "layer"
    row = "row"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(sparsify)


def sparsify(
    source: SOURCE,
    out: Annotated[Path, typer.Option(help="One folder per version is made here.", show_default=False)],
    sparsity: Annotated[
        list[float] | None, typer.Option(help="A share between 0 and 1; repeatable.", show_default=False)
    ] = None,
    method: Annotated[
        str, typer.Option(help="See `sparsebench sparsify --help`'s list in the manual: magnitude, random.")
    ] = "magnitude",
    pattern: Annotated[
        list[str] | None, typer.Option(help="N:M instead of a sparsity, such as 2:4; repeatable.", show_default=False)
    ] = None,
    granularity: Annotated[
        Competition, typer.Option(help="All weights compete, those of a matrix, or of a row.")
    ] = Competition.layer,
    seed: Annotated[int, typer.Option(min=0, help="For methods that draw.")] = 0,
    form: Annotated[
        Form, typer.Option("--format", help="dense loads in transformers; packed is smaller.")
    ] = Form.dense,
    family: FAMILY = None,
    dtype: DTYPE = Precision.auto,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Make sparsified versions of a model in one pass over its weights.

    \b
    sparsebench sparsify path:my-model --sparsity 0.5 --sparsity 0.9 --out pruned/
    sparsebench sparsify path:my-model --pattern 2:4 --format packed --out pruned/
    """
    import shutil
    from dataclasses import asdict

    from sparsebench.cli.output import emit_json, emit_table, note, size
    from sparsebench.manifest.schema import Sparsify
    from sparsebench.plan.expand import targets
    from sparsebench.plan.single import single, validated
    from sparsebench.sparsify.contract import SparsifyResult, Target
    from sparsebench.sparsify.sweep import Sweep
    from sparsebench.storage import pack

    asked: dict[str, object] = {"method": method, "granularity": [granularity.value]}
    asked |= {"sparsity": sparsity} if sparsity else {}
    asked |= {"pattern": (["unstructured"] if sparsity else []) + pattern} if pattern else {}
    entry = validated(Sparsify, asked)
    model = single(source, family, dtype.value, offline)
    folders = {
        Target(share, grain, shape): out / (f"{share:.2f}" if shape == "unstructured" else shape.replace(":", "of"))
        for grain, shape, share in targets(entry)
    }
    taken = [folder for folder in folders.values() if folder.exists()]
    if taken:
        from sparsebench.errors import UserError

        raise UserError(f"{taken[0]} exists", "name another --out, or remove it")
    results: list[tuple[Path, Target, SparsifyResult]] = []
    sweep = Sweep(model.folder, model.family, method, folders, seed)
    sweep.run(lambda target, result: results.append((folders[target], target, result)))
    for folder, _, _ in results if form is Form.packed else []:
        pack(folder, folder.with_name(folder.name + ".packing"))
        shutil.rmtree(folder)
        folder.with_name(folder.name + ".packing").rename(folder)
    if as_json:
        emit_json([{"folder": str(folder), **asdict(target), **asdict(result)} for folder, target, result in results])
        return
    rows = [
        [
            str(folder),
            f"{result.achieved:.4%}",
            f"{result.achieved_all:.4%}",
            size(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())),
        ]
        for folder, _, result in results
    ]
    emit_table(["folder", "zeros, prunable", "zeros, all", "on disk"], rows)
    for reason in dict.fromkeys(result.note for _, _, result in results if result.note):
        note(reason)
