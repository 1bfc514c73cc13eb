"""``sparsebench pack`` and ``unpack``: a model folder to a smaller format and back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import ONE_MODEL, names_of


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(rich_help_panel=ONE_MODEL)(pack)
    app.command(rich_help_panel=ONE_MODEL)(unpack)


OUT = Annotated[
    Path | None,
    typer.Option("--out", help="Default: the folder's name with .packed, .archive or .unpacked.", show_default=False),
]


def pack(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="packed leaves the zeros out; archive is smaller still, and slower.",
            autocompletion=names_of("storage", "formats"),
        ),
    ] = "packed",
    out: OUT = None,
) -> None:
    """Write a model folder in a smaller format.

    The sparse engine loads a packed folder; everything else needs it unpacked first.

    \b
    sparsebench pack pruned/0.90
    sparsebench pack pruned/0.90 --format archive
    """
    from sparsebench.cli.output import note, size
    from sparsebench.models.safety import left_out, told

    write = writer(form)
    assert write
    target = _target(folder, out, f".{form}")
    write(folder, target)
    before, after = _bytes(folder), _bytes(target)
    note(f"{target}: {size(after)} of {size(before)} ({after / before:.1%})")
    if left := told(left_out(target)):
        note(left)


def writer(form: str, dense: bool = False) -> Callable[[Path, Path], object] | None:
    """What writes a folder in a format; None for ``dense``, where that is allowed: it is a folder as it is.

    Raises UserError for a format that does not exist.
    """
    from sparsebench.errors import UserError
    from sparsebench.manifest.problems import did_you_mean, one_of
    from sparsebench.storage import formats

    known = {name: row.write for name, row in formats().items() if row.write or dense}
    if form not in known:
        raise UserError(f"--format {form}: no such format", did_you_mean(form, known) or one_of(list(known)))
    return known[form]


def unpack(folder: Annotated[Path, typer.Argument(help="A folder made by pack.")], out: OUT = None) -> None:
    """Restore a packed or archived folder to the model folder that it was made from, bit for bit.

    \b
    sparsebench unpack pruned/0.90.packed --out restored
    """
    from sparsebench.cli.output import note
    from sparsebench.storage import unpack as write

    target = _target(folder, out, ".unpacked")
    write(folder, target)
    note(f"{target}: restored, checksums equal")


def _target(folder: Path, out: Path | None, suffix: str) -> Path:
    from sparsebench.errors import UserError

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "name a model folder")
    target = out or folder.with_name(_bare(folder.name) + suffix)
    if target.exists():
        raise UserError(f"{target} exists", "name another --out, or remove it")
    return target


def _bare(name: str) -> str:
    """A folder's name without the format that `pack` has put behind it."""
    from sparsebench.storage import formats

    stem, _, form = name.rpartition(".")
    return stem if form in formats() else name


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
