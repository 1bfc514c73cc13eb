"""``sparsebench apply``: a step, or a chain of steps, applied to one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebench import devices, environment
from sparsebench.cli.options import COMPUTE_DTYPE, DEVICE, DTYPE, FAMILY, JSON, OFFLINE, SOURCE, writes_folder
from sparsebench.cli.output import emit_json, emit_table, note
from sparsebench.cli.source import check_source, open_model, parse_setting
from sparsebench.errors import UserError
from sparsebench.models.files.building import rename_whole
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.masked import write_masked
from sparsebench.models.shape.topology import parts
from sparsebench.notebook import AppliedModel, Chain
from sparsebench.paths import check_new_folder, folder_bytes, partial_of
from sparsebench.plan.single import SingleModel
from sparsebench.progress import progress
from sparsebench.sources import Cache
from sparsebench.steps.registry import label
from sparsebench.units import size

STEP_EXAMPLE = 'such as "prune: wanda, sparsity: 0.5"'
CALIBRATION_EXAMPLE = 'such as "source: path:FILE, samples: 64"'

AS_MASKS = typer.Option(
    "--as-masks", help="Write weight_orig and weight_mask, as torch.nn.utils.prune does. Only for prune."
)


def apply(
    source: SOURCE,
    steps: Annotated[
        list[str] | None,
        typer.Argument(metavar="STEP", help=f"A step as in a manifest, {STEP_EXAMPLE}; several: a chain."),
    ] = None,
    out: Annotated[Path | None, writes_folder("The folder for the result; always needed.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='The text that steps read, as in a manifest\'s section: a source, or "source: path:FILE, samples: 64". '
            "Default: passages of BoolQ.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**62 - 1, help="Seed of random masks and of the calibration text.")
    ] = 0,
    as_masks: Annotated[bool, AS_MASKS] = False,
    family: FAMILY = None,
    dtype: DTYPE = "auto",
    compute_dtype: COMPUTE_DTYPE = "auto",
    device: DEVICE = "auto",
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Make one variant of a model: apply a step, or a chain of steps.

    A step is written as in a manifest; its braces may be left out.

    \b
    sparsebench apply smollm2-135m "prune: magnitude, sparsity: 0.5" --out half
    sparsebench apply path:my-model "prune: wanda, pattern: 2:4" \\
        --calibration "source: path:text.jsonl, field: text" --out pruned
    sparsebench apply path:my-model "prune: sparsegpt, sparsity: 0.5" \\
        "quantize: int8" --out both
    """
    check_source(source)
    chain = _chain(steps or [], calibration, seed, as_masks)
    if out is None:
        raise UserError("no folder for the result is given", "--out FOLDER")
    check_new_folder(out)
    device = devices.resolve(device)
    model = open_model(source, family, dtype, offline, chain.refuse)
    _check_room(out, len(chain.steps), model.folder)
    with progress(model.name) as bar:
        variant = chain.make(model, out, Cache(offline=offline), device, compute_dtype, bar)
    if as_masks:
        _write_masks(variant, model)
    if as_json:
        rows = [
            {"verb": step.verb, "name": step.name, **step.settings.record(), **asdict(report)}
            for step, report in variant.steps
        ]
        emit_json({"folder": str(variant.folder), "bytes": folder_bytes(variant.folder), "steps": rows})
    else:
        _show(variant)


def _chain(step_texts: list[str], calibration: str | None, seed: int, as_masks: bool) -> Chain:
    """Return the chain of steps that a command asks for. Raises UserError for what is none."""
    if not step_texts:
        raise UserError("no step is given", STEP_EXAMPLE)
    chain = Chain.parse(_steps(step_texts), _calibration(calibration), seed)
    if as_masks and any(step.verb != "prune" for step in chain.steps):
        raise UserError("--as-masks: only pruned weights have masks", "leave it out, or give `prune` steps only")
    return chain


def _steps(step_texts: list[str]) -> list[Mapping[str, Any]]:
    """Return the steps of a recipe; a text is one step, or the list of a chain."""
    recipes = [parse_setting("step", text, STEP_EXAMPLE) for text in step_texts]
    steps = [step for recipe in recipes for step in (recipe if isinstance(recipe, list) else [recipe])]
    for step in steps:
        if not isinstance(step, Mapping):
            raise UserError(f"{step}: not a step", STEP_EXAMPLE)
    return steps


def _calibration(text: str | None) -> Mapping[str, Any]:
    if text is None or not (": " in text or text.startswith("{")):
        return {"source": text}
    keys = parse_setting("--calibration", text, CALIBRATION_EXAMPLE)
    if not isinstance(keys, Mapping):
        raise UserError(f"--calibration {text}: not a mapping", CALIBRATION_EXAMPLE)
    return keys


def _check_room(out: Path, step_count: int, model_folder: Path) -> None:
    """Raise UserError before the work where the disk is too small for the results of all steps, each as large as the model."""
    needed, free = step_count * folder_bytes(model_folder), environment.free_disk(out)
    if needed > free:
        raise UserError(f"{out}: up to {size(needed)} are needed, and {size(free)} are free", "use a larger disk")


def _write_masks(variant: AppliedModel, dense: SingleModel) -> None:
    """Replace a pruned model's weights by the weights of the dense model and their masks."""
    prunable = {name for name, part in parts(Checkpoint(dense.folder), dense.family).items() if part.prunable}
    masked = partial_of(variant.folder, "-masks")
    write_masked(variant.folder, dense.folder, masked, prunable)
    rename_whole(masked, variant.folder)


def _show(variant: AppliedModel) -> None:
    rows = [
        [f"{step.verb}: {label(step)}", f"{report.achieved:.4%}", f"{report.achieved_all:.4%}"]
        for step, report in variant.steps
    ]
    emit_table(["step", "zeros, prunable", "zeros, all"], rows)
    last = variant.steps[-1][1]
    prunable = f"{last.prunable / last.parameters:.1%} of the {last.parameters:,} parameters are prunable"
    note(f"{variant.folder}: {size(folder_bytes(variant.folder))}; {prunable}")
    for text in dict.fromkeys(report.note for _, report in variant.steps if report.note):
        note(text)
