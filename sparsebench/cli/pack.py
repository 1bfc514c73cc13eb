"""``sparsebench pack`` and ``unpack``: a model folder to the packed format and back, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(pack)
    app.command()(unpack)


OUT = Annotated[
    Path | None, typer.Option("--out", help="Default: the folder's name with .packed or .unpacked.", show_default=False)
]


def pack(folder: Annotated[Path, typer.Argument(help="A Hugging Face folder.")], out: OUT = None) -> None:
    """Write a model folder in the packed format: smaller with every zero, not loadable until unpacked.

    \b
    sparsebench pack pruned/0.90
    """
    from sparsebench.cli.output import note, size
    from sparsebench.storage import pack as write

    target = _target(folder, out, ".packed")
    write(folder, target)
    before, after = _bytes(folder), _bytes(target)
    note(f"{target}: {size(after)} of {size(before)} ({after / before:.1%})")


def unpack(folder: Annotated[Path, typer.Argument(help="A packed folder.")], out: OUT = None) -> None:
    """Restore a packed folder to the model folder that it was made from, bit for bit.

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
    target = out or folder.with_name(folder.name.removesuffix(".packed") + suffix)
    if target.exists():
        raise UserError(f"{target} exists", "name another --out, or remove it")
    return target


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
