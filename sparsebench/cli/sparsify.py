"""``sparsebench sparsify``: sparsified versions of one model, one folder each."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebench.cli.options import DTYPE, FAMILY, JSON, OFFLINE, SOURCE, Precision

if TYPE_CHECKING:
    from sparsebench.sparsify.contract import SparsifyResult


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
    method: Annotated[str, typer.Option(help="magnitude, random, or one that a plugin adds.")] = "magnitude",
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
    from dataclasses import asdict

    from sparsebench.cli.output import emit_json
    from sparsebench.manifest.schema import Sparsify
    from sparsebench.plan.expand import targets
    from sparsebench.plan.single import single, validated
    from sparsebench.sparsify.contract import Target
    from sparsebench.sparsify.sweep import Sweep

    _check_method(method)
    asked: dict[str, object] = {"method": method, "granularity": [granularity.value]}
    asked |= {"sparsity": sparsity} if sparsity else {}
    asked |= {"pattern": (["unstructured"] if sparsity else []) + pattern} if pattern else {}
    entry = validated(Sparsify, asked)
    folders = {Target(share, grain, shape): out / _name(share, shape) for grain, shape, share in targets(entry)}
    _check_free(folders.values())
    model = single(source, family, dtype.value, offline)
    results: list[tuple[Path, Target, SparsifyResult]] = []
    sweep = Sweep(model.folder, model.family, method, folders, seed)
    sweep.run(lambda target, result: results.append((folders[target], target, result)))
    if form is Form.packed:
        _pack_in_place([folder for folder, _, _ in results])
    if as_json:
        emit_json([{"folder": str(folder), **asdict(target), **asdict(result)} for folder, target, result in results])
    else:
        _show([(folder, result) for folder, _, result in results])


def _name(share: float, pattern: str) -> str:
    """``0.90``, or ``0.995`` where two digits would not tell; ``2of4`` for a pattern."""
    if pattern != "unstructured":
        return pattern.replace(":", "of")
    return f"{share:.2f}" if round(share, 2) == share else f"{share:g}"


def _check_method(name: str) -> None:
    from sparsebench.errors import UserError
    from sparsebench.manifest.problems import did_you_mean, one_of
    from sparsebench.sparsify.registry import methods

    if name not in methods():
        raise UserError(f"--method {name}: no such method", did_you_mean(name, methods()) or one_of(list(methods())))


def _check_free(folders: Iterable[Path]) -> None:
    from sparsebench.errors import UserError

    taken = next((folder for folder in folders if folder.exists()), None)
    if taken:
        raise UserError(f"{taken} exists", "name another --out, or remove it")


def _pack_in_place(folders: list[Path]) -> None:
    """Each folder becomes its own packed form; the dense one goes only when the packed one is whole."""
    import shutil

    from sparsebench.storage import pack

    for folder in folders:
        packed = folder.with_name(folder.name + ".packing")
        pack(folder, packed)
        shutil.rmtree(folder)
        packed.rename(folder)


def _show(results: list[tuple[Path, SparsifyResult]]) -> None:
    from sparsebench.cli.output import emit_table, note, size

    rows = [
        [
            str(folder),
            f"{result.achieved:.4%}",
            f"{result.achieved_all:.4%}",
            size(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())),
        ]
        for folder, result in results
    ]
    emit_table(["folder", "zeros, prunable", "zeros, all", "on disk"], rows)
    for reason in dict.fromkeys(result.note for _, result in results if result.note):
        note(reason)
