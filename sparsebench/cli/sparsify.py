"""``sparsebench sparsify``: sparsified versions of one model, one folder each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebench import bounded, environment
from sparsebench.cli.options import (
    COMPUTE_DTYPE,
    DEVICE,
    DTYPE,
    FAMILY,
    JSON,
    OFFLINE,
    SOURCE,
    check_name,
    folder_to_write,
    names_of,
)
from sparsebench.cli.output import emit_json, emit_table, note, progress, size
from sparsebench.cli.pack import folder_bytes, writer
from sparsebench.errors import UserError
from sparsebench.steps.prune import settings

if TYPE_CHECKING:
    from sparsebench.plan.single import SingleModel
    from sparsebench.steps.contract import Evidence, Step

    Made = tuple[Path, Step, Evidence]


def sparsify(
    source: SOURCE,
    out: Annotated[
        Path,
        typer.Option(help="The folder for the versions, one subfolder each.", metavar="FOLDER", parser=folder_to_write),
    ],
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Share of the prunable weights to remove, from 0 to 1; repeatable.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="random, magnitude, wanda, ria, sparsegpt, alps, mask, or a plugin's; repeatable; default: magnitude.",
            autocompletion=names_of("steps.prune.registry", "methods"),
        ),
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            help="N:M, such as 2:4, which fixes the sparsity; blocks, such as 4x4; rows or columns; repeatable."
        ),
    ] = None,
    granularity: Annotated[
        settings.Granularity | None,
        typer.Option(
            help="Which weights compete: all (global), those of a matrix (layer) or of a row. Default: as published."
        ),
    ] = None,
    allocation: Annotated[
        settings.Allocation,
        typer.Option(help="uniform: the same sparsity in every block; owl: less in blocks with more outliers."),
    ] = "uniform",
    propagate: Annotated[
        settings.Propagate,
        typer.Option(
            help="Calibrate on activations of the version's own pruned blocks (as published), or of the dense model."
        ),
    ] = "pruned",
    own: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, such as damping=0.1; repeatable.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Text to calibrate on: path:, wheel: or hf:; default: passages of BoolQ.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="The calibration file's column that holds the text.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The column that an encoder-decoder's decoder reads; default: the text's second half."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=bounded.MANY, help="Calibration sequences.")] = 128,
    length: Annotated[
        int | None,
        typer.Option(
            min=1, max=bounded.MANY, help="Tokens per sequence. Default: 2048, or the model's maximum if less."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**62 - 1, help="Seed of random masks and of the calibration text.")
    ] = 0,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="dense loads in transformers; packed is smaller, archive smallest and slower.",
            autocompletion=names_of("storage", "formats"),
        ),
    ] = "dense",
    as_masks: Annotated[
        bool,
        typer.Option(
            "--as-masks",
            help="Write weight_orig and weight_mask, as torch.nn.utils.prune does, in place of pruned weights.",
        ),
    ] = False,
    family: FAMILY = None,
    dtype: DTYPE = "auto",
    compute_dtype: COMPUTE_DTYPE = "auto",
    device: DEVICE = "auto",
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Make sparsified versions of a model in one pass over its weights.

    \b
    sparsebench sparsify path:my-model --sparsity 0.5 --sparsity 0.9 --out pruned/
    sparsebench sparsify path:my-model --method wanda --pattern 2:4 --out pruned/
    sparsebench sparsify path:my-model --method mask \\
        --set file=masks.safetensors --out pruned/
    sparsebench sparsify path:my-model --method sparsegpt --sparsity 0.5 \\
        --calibration path:text.jsonl --field text --out pruned/
    """
    from sparsebench import devices, sources
    from sparsebench.manifest.schema import ManifestCalibration
    from sparsebench.models.shape.topology import refuse_replay
    from sparsebench.notebook import make
    from sparsebench.plan.expand import resolved
    from sparsebench.plan.single import single, validated
    from sparsebench.steps.calibration import tokens
    from sparsebench.steps.contract import Context

    names = list(dict.fromkeys(method or ["magnitude"]))
    asked: dict[str, object] = {"allocation": allocation, "propagate": propagate, **_settings(own or [])}
    asked |= {"granularity": granularity} if granularity else {}
    asked |= {"sparsity": sparsity} if sparsity else {}
    asked |= {"pattern": _patterns(sparsity, pattern)} if pattern else {}
    columns = {"field": field, "target": target}
    text = validated(ManifestCalibration, {"source": calibration, "samples": samples, "length": length, **columns})
    folders = _folders(names, asked, out)
    if taken := next((folder for folder in folders.values() if folder.exists()), None):
        raise UserError(f"{taken} exists", "name another --out, or remove it")
    write = writer(form, dense=True)
    if as_masks and write:
        raise UserError(f"--as-masks beside --format {form}", "masks are written in the dense form")
    reads = any(step.settings.reads_text() for step in folders)
    named = devices.resolve(device) if reads or device != "auto" else "cpu"  # a wrong name is told whatever the method
    there = named if reads else "cpu"
    cache = sources.Cache(offline=offline)
    model = single(source, family, dtype, cache, refuse_replay if reads else None)
    _check_room(out, len(folders), model.folder)
    with progress(f"{', '.join(names)}: {model.name}") as bar:
        context = Context(
            model.family, seed, model.calculated(compute_dtype, there),
            lambda: tokens(model.folder, model.family, resolved(text, seed), cache), bar, device=there,
        )  # fmt: skip
        found = make("prune", model.folder, folders, context)
    made = [(folders[step], step, evidence) for step, evidence in found.items()]
    if as_masks:
        form, write = "masks", _with_masks(model)
    if write:
        _store([folder for folder, _, _ in made], form, write)
    if as_json:
        emit_json(
            [
                {"folder": str(folder), "method": step.name, **step.settings.record(), **asdict(r)}
                for folder, step, r in made
            ]
        )
    else:
        _show(made)


def _folders(names: list[str], asked: dict[str, object], out: Path) -> dict[Step, Path]:
    """Return every version asked for with its output folder; each of several methods has a folder of its own.

    Raises UserError for an unknown method, and where two versions would have the same folder.
    """
    from sparsebench.plan.single import steps
    from sparsebench.steps.registry import kinds

    known = kinds()["prune"].classes()
    for name in names:
        check_name("method", name, known)
    found = []
    for name in names:
        idle = {key for key, usual in _USUAL.items() if asked.get(key) == usual and key not in known[name].model_fields}
        found += steps("prune", name, {key: value for key, value in asked.items() if key not in idle})
    folders = {step: (out / step.name if len(names) > 1 else out) / _name(step) for step in found}
    twice = next((path for path in folders.values() if list(folders.values()).count(path) > 1), None)
    if twice:
        raise UserError(f"two versions would both be {twice}", "make each with a command and an --out of its own")
    return folders


_USUAL = {"allocation": "uniform", "propagate": "pruned"}
"""Defaults of options; they are dropped for a method that has no such setting."""


def _settings(words: list[str]) -> dict[str, object]:
    """Parse words such as ``damping=0.1`` into fields and values. Raises UserError for any other form."""
    from sparsebench.manifest.nodes import read

    pairs = [word.partition("=") for word in words]
    found: dict[str, object] = {}
    for word, (key, equals, text) in zip(words, pairs, strict=True):
        if not equals:
            raise UserError(f"--set {word}: not KEY=VALUE", "such as --set damping=0.1")
        # Read as in a manifest: 1e-2 is a number.
        found[key], _, problems = read(text, "--set")
        if problems:
            raise UserError(f"--set {word}: {problems[0].message}", problems[0].hint or "quote a text")
    return found


def _patterns(sparsity: list[float] | None, patterns: list[str]) -> list[str]:
    """Add ``unstructured`` for the given sparsities where all patterns are N:M; block patterns take them instead."""
    from sparsebench.manifest.schema import is_nm

    plain = bool(sparsity) and all(is_nm(pattern) for pattern in patterns)
    return [*(["unstructured"] if plain else []), *patterns]


def _name(step: Step) -> str:
    """Name a version's folder: ``0.90`` (or ``0.995``), ``2of4``, ``4x4-0.50``, or the stem of its mask file."""
    from sparsebench.steps.prune.settings import Mask

    if isinstance(step.settings, Mask):
        from sparsebench.sources.reference import Reference

        return Path(Reference.parse(str(step.settings.file)).source).stem
    pattern, sparsity = step.settings.pattern, step.settings.sparsity
    if ":" in pattern:
        return str(pattern).replace(":", "of")
    share = f"{sparsity:.2f}" if round(sparsity, 2) == sparsity else f"{sparsity:g}"
    return share if pattern == "unstructured" else f"{pattern}-{share}"


def _check_room(out: Path, versions: int, model: Path) -> None:
    """Raise UserError before the work where the disk is too small for all versions, each as large as the model."""
    needed = versions * sum(file.stat().st_size for file in model.iterdir() if file.is_file())
    free = environment.free_disk(out)
    if needed > free:
        versions_take = "1 version takes" if versions == 1 else f"{versions} versions take"
        raise UserError(
            f"{versions_take} {size(needed)} at {out} while they are made, and {size(free)} are free",
            "ask for fewer at a time, or name an --out on a larger disk",
        )


def _with_masks(model: SingleModel) -> Callable[[Path, Path], object]:
    """Return a function that writes a pruned folder as its masks beside the weights of the model it was made from."""
    from sparsebench.models.files.checkpoint import Checkpoint
    from sparsebench.models.files.masked import write_masked
    from sparsebench.models.shape.topology import parts

    names = {name for name, part in parts(Checkpoint(model.folder), model.family).items() if part.prunable}
    return lambda folder, stored: write_masked(folder, model.folder, stored, names)


def _store(folders: list[Path], form: str, write: Callable[[Path, Path], object]) -> None:
    """Convert each folder to its stored form; the dense folder is removed only when the stored one is complete."""
    for folder in folders:
        stored = folder.with_name(f"{folder.name}.{form}-part")
        write(folder, stored)
        shutil.rmtree(folder)
        stored.rename(folder)


def _show(made: list[Made]) -> None:
    rows = [
        [str(folder), f"{result.achieved:.4%}", f"{result.achieved_all:.4%}", size(folder_bytes(folder))]
        for folder, _, result in made
    ]
    emit_table(["folder", "zeros, prunable", "zeros, all", "on disk"], rows)
    first = made[0][2]
    note(f"{first.prunable / first.parameters:.1%} of the {first.parameters:,} parameters are prunable")
    for reason in dict.fromkeys(result.note for _, _, result in made if result.note):
        note(reason)
