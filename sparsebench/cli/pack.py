"""``sparsebench pack`` and ``unpack``: a model folder to a smaller format and back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import JSON, check_name, folder_to_read, folder_to_write, names_of
from sparsebench.cli.output import emit_json, note, size
from sparsebench.errors import UserError

OUT = Annotated[
    Path | None,
    typer.Option(
        help="The folder to write. Default: FOLDER with .packed, .archive or .unpacked.",
        metavar="FOLDER",
        parser=folder_to_write,
    ),
]


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
    sparsebench pack pruned/0.90
    sparsebench pack pruned/0.90 --format archive
    """
    from sparsebench.models.files.safety import left_out, left_out_note

    write = writer(form)
    assert write
    target = _target(folder, out, f".{form}")
    write(folder, target)
    before, after = folder_bytes(folder), folder_bytes(target)
    if as_json:
        emit_json({"folder": str(target), "format": form, "bytes": after, "bytes_before": before})
    else:
        note(f"{target}: {size(after)} of {size(before)} ({after / before:.1%})")
    if left := left_out_note(left_out(target)):
        note(left)


def writer(form: str, dense: bool = False) -> Callable[[Path, Path], object] | None:
    """Return the function that writes a folder in a format; None for ``dense``, if allowed: a folder is dense already.

    Raises UserError for a format that does not exist.
    """
    from sparsebench.storage import formats

    known = {name: row.write for name, row in formats().items() if row.write or dense}
    check_name("format", form, known)
    return known[form]


def unpack(
    folder: Annotated[Path, typer.Argument(help="A folder made by pack.", parser=folder_to_read)], out: OUT = None
) -> None:
    """Restore a packed or archived folder to the model folder that it was made from, bit for bit.

    \b
    sparsebench unpack pruned/0.90.packed --out restored
    """
    from sparsebench.storage import unpack as write

    target = _target(folder, out, ".unpacked")
    write(folder, target)
    note(f"{target}: restored, checksums equal")


def _target(folder: Path, out: Path | None, suffix: str) -> Path:
    from sparsebench.storage import formats

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "name a model folder")
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    stem, _, form = folder.name.rpartition(".")  # `pack` has put the format behind the name
    target = out or folder.with_name((stem if form in formats() else folder.name) + suffix)
    if target.exists():
        raise UserError(f"{target} exists", "name another --out, or remove it")
    return target


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder and below, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
