"""``sparsebench pack`` and ``unpack``: a model folder to a smaller format and back, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import JSON, check_name, folder_to_read, names_of, writes_folder
from sparsebench.cli.output import emit_json, note
from sparsebench.errors import UserError
from sparsebench.models.files import safety
from sparsebench.paths import check_new_folder, folder_bytes
from sparsebench.storage import formats
from sparsebench.storage import unpack as write
from sparsebench.units import size

OUT = Annotated[Path | None, writes_folder("The folder to write. Default: FOLDER with .packed, .archive or .unpacked.")]


def pack(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder.", parser=folder_to_read)],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="packed leaves the zeros out; archive is smaller still, and slower.",
            autocompletion=names_of("storage", "formats"),
        ),
    ] = "packed",
    out: OUT = None,
    as_json: JSON = False,
) -> None:
    """Write a model folder in a smaller format.

    The sparse engine loads a packed folder; everything else needs it unpacked first.

    \b
    sparsebench pack half
    sparsebench pack half --format archive
    """
    writers = {name: row.write for name, row in formats().items() if row.write}
    check_name("format", form, writers)
    target = _target(folder, out, f".{form}")
    writers[form](folder, target)
    before, after = folder_bytes(folder), folder_bytes(target)
    if as_json:
        emit_json({"folder": str(target), "format": form, "bytes": after, "bytes_before": before})
    else:
        note(f"{target}: {size(after)} of {size(before)} ({after / before:.1%})")
    if left_out := safety.left_out_sentence(safety.left_out_files(target)):
        note(left_out)


def unpack(
    folder: Annotated[Path, typer.Argument(help="A folder made by pack.", parser=folder_to_read)], out: OUT = None
) -> None:
    """Restore a packed or archived folder to the model folder that it was made from, bit for bit.

    \b
    sparsebench unpack half.packed --out restored
    """
    target = _target(folder, out, ".unpacked")
    write(folder, target)
    note(f"{target}: restored, checksums equal")


def _target(folder: Path, out: Path | None, suffix: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "name a model folder")
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    stem, _, form = folder.name.rpartition(".")  # `pack` has put the format behind the name
    return check_new_folder(out or folder.with_name((stem if stem and form in formats() else folder.name) + suffix))
