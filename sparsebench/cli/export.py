"""``sparsebench export``: a variant for somebody else."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import JSON, LEDGER_ALONE, OFFLINE, WORK, check_name, writes_folder
from sparsebench.cli.output import emit_json, note
from sparsebench.errors import SourceError, UserError
from sparsebench.ledger import query
from sparsebench.ledger.choose import make_command, precisions_of, steps_of
from sparsebench.ledger.naming import measured_variants, resolve_variant
from sparsebench.manifest.names import Family
from sparsebench.paths import check_new_folder, folder_bytes, ledger_path
from sparsebench.plan.single import prepare_single, source_named
from sparsebench.run.export import FORMATS
from sparsebench.run.export import export as write
from sparsebench.run.workspace import variant_folder
from sparsebench.sources import Cache
from sparsebench.units import size

VARIANT = (
    "A variant of the ledger, MODEL/RECIPE or the beginning of its id (see choose); or a folder that apply or pack made, an "
    "alias (see models) or another source of a model."
)


def export(
    variant: Annotated[str, typer.Argument(help=VARIANT)],
    out: Annotated[Path, writes_folder("The folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.", autocompletion=lambda: [*FORMATS])
    ] = "hf",
    ledger: LEDGER_ALONE = None,
    work: WORK = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Write a variant for somebody else's program, and load it back as a check.

    hf is a folder for stock transformers, with weights as floats: zeros are
    stored, and int8 and int4 are expanded. compressed-tensors keeps the integers;
    stock transformers and vLLM read it where that package is installed. gguf is a
    file for llama.cpp.

    \b
    sparsebench export my-bert/int8 --format compressed-tensors --out my-bert-int8
    sparsebench export half --format hf --out for-a-colleague
    """
    check_name("format", form, FORMATS)
    check_new_folder(out)
    if _is_source(variant):
        model = prepare_single(variant, None, "auto", Cache(offline=offline))
        folder, family = model.folder, model.family
    else:
        folder, family = _measured_variant(ledger_path(ledger), variant, work or Cache().root / "work")
    distance = write(folder, family, out, form)
    if as_json:
        emit_json({"folder": str(out), "format": form, "bytes": folder_bytes(out), "distance": distance})
    else:
        agreement = f"the variant's outputs within {distance:.0e}" if distance else "the variant's own outputs"
        files = [*out.iterdir()]
        written = files[0] if len(files) == 1 else out
        note(f"{written}: {size(folder_bytes(out))}; {FORMATS[form].program} loads it, with {agreement}")


def _is_source(text: str) -> bool:
    """Whether ``text`` is a path, an alias or a source of a model, as other commands take it."""
    try:
        source_named(text)
    except SourceError:
        return False
    return True


def _measured_variant(ledger: Path, name: str, work: Path) -> tuple[Path, Family]:
    """Return the folder and family of a variant that a run has made. Raises UserError where its folder is gone."""
    with query.session(ledger) as ask:
        variant = resolve_variant(name, measured_variants(ask))
        (row,) = ask("SELECT * FROM variants WHERE variant_id = $id", {"id": variant.id}).dicts()
        steps = steps_of(ask, [variant.id]).get(variant.id)
        precision = precisions_of(ask, [variant.id]).get(variant.id)
    folder = variant_folder(work, variant.id)
    if folder is None:
        command = make_command(row, steps, precision) if steps else f"sparsebench export {shlex.quote(row['source'])}"
        hint = f"name the manifest's work_dir with --work, or make it again and export its folder: {command}"
        raise UserError(f"{variant.name}: the run kept no copy of it in {work}", hint)
    return folder, row["family"]
