"""The command line's commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sparsebench import __version__
from sparsebench.errors import SparsebenchError, known_crash, redact_stderr, system_error
from sparsebench.escape import visible

EXPERIMENT, ONE_MODEL, LEDGER, MACHINE = "An experiment", "One model, without a manifest", "The ledger", "This machine"
VERBS = {
    "init": ("init", EXPERIMENT),
    "plan": ("plan", EXPERIMENT),
    "run": ("run", EXPERIMENT),
    "status": ("status", EXPERIMENT),
    "sql": ("sql", LEDGER),
    "figures": ("report", LEDGER),
    "report": ("report", LEDGER),
    "ingest": ("records", LEDGER),
    "tables": ("records", LEDGER),
    "bundle": ("records", LEDGER),
    "unbundle": ("records", LEDGER),
    "models": ("models", ONE_MODEL),
    "inspect": ("inspect", ONE_MODEL),
    "apply": ("apply", ONE_MODEL),
    "measure": ("measure", ONE_MODEL),
    "score": ("score", ONE_MODEL),
    "compare": ("compare", LEDGER),
    "choose": ("choose", LEDGER),
    "pack": ("pack", ONE_MODEL),
    "export": ("export", ONE_MODEL),
    "unpack": ("pack", ONE_MODEL),
    "schema": ("init", EXPERIMENT),
    "doctor": ("doctor", MACHINE),
    "clean": ("clean", MACHINE),
}
"""Each verb (a function of that name): the module in this folder that holds it, and its group in ``--help``."""


class Verbs(TyperGroup):
    """The command group, which reports an interrupt and ends quietly on a closed pipe.

    typer alone would be silent about the first and treat the second as a failure.
    """

    def make_context(self, *words: Any, **settings: Any) -> Any:
        """Parse the words of the command; ``--help`` prints here."""
        with _closed_pipe():
            return super().make_context(*words, **settings)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep a query that begins with a comment, as the report's do, from being read as an option."""
        return super().parse_args(ctx, [f" {word}" if word.startswith(("-- ", "--\n")) else word for word in args])

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for."""
        try:
            with _closed_pipe():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            print("sparsebench: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


class Verb(TyperCommand):
    """A command, none of whose options takes an empty text, infinity or what is no number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command, and refuse the option whose value means nothing."""
        remaining: list[str] = super().parse_args(ctx, args)
        parameters: list[Any] = [*self.params]
        for parameter in parameters:
            values = ctx.params.get(parameter.name)
            for value in values if isinstance(values, list | tuple) else [values]:
                if value == "" and not ctx.resilient_parsing:
                    raise typer.BadParameter("an empty text", ctx, parameter)
                if isinstance(value, float) and not math.isfinite(value) and not ctx.resilient_parsing:
                    raise typer.BadParameter("not finite", ctx, parameter)
        return remaining


@contextmanager
def _closed_pipe() -> Iterator[None]:
    """End with 0 when the reader closes the pipe, as in ``sparsebench sql … | head``, and discard what is buffered."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # rich exits by itself on a closed pipe, with code 1.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"sparsebench {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Registered so that ``--version`` works without a verb."""


def program(verbs: Collection[str]) -> typer.Typer:
    """Return the program; only the modules of ``verbs`` are imported, the others are listed in ``--help``."""
    app = typer.Typer(
        cls=Verbs,
        help="What does sparsity buy, and what does it cost? One manifest, one command, one ledger.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb, (module, group) in VERBS.items():
        if verb in verbs:
            function = getattr(import_module(f"sparsebench.cli.{module}"), verb)
            app.command(verb, cls=Verb, rich_help_panel=group)(function)
        else:
            app.command(verb, rich_help_panel=group, help=_summary(verb, module))(lambda: None)  # only listed
    return app


def _summary(verb: str, module: str) -> str:
    """Return the first line of a verb's docstring, out of its source: ``--help`` imports no verb."""
    text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    match = re.search(rf'^def {verb}\(.*?"""(.*?)$', text, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def __getattr__(name: str) -> Any:
    """``app`` is the program with all of its verbs."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return program(VERBS)


def _requested_verb() -> Collection[str]:
    """Return the verb on the command line, or on the one that a shell wants completed; none where there is none."""
    completed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS")
    words = completed.split()[1:] if "_SPARSEBENCH_COMPLETE" in os.environ and completed else sys.argv[1:]
    return [word for word in words if not word.startswith("-")][:1]


def main() -> None:
    """Run a command.

    Exit codes: 0 done; 1 something failed or could not be done (a cell, a task, a check of `doctor`, a locked ledger); 2 the
    input was wrong; 130 interrupted.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_streams()
    redact_stderr()
    try:
        program(_requested_verb())()
    except SparsebenchError as error:
        _exit_with(error)
    except OSError as error:
        from sparsebench.sources import Cache

        _exit_with(system_error(error, Cache().root))
    except BaseException as error:  # a library's panic in Rust is no Exception
        if (crash := known_crash(error)) is None:
            raise
        _exit_with(crash)


def _exit_with(error: SparsebenchError) -> None:
    print(f"sparsebench: {visible(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)


def _open_streams() -> None:
    """Open the streams that a shell has closed (``>&-``), and make stdout and stderr accept any text.

    An ASCII stream cannot write every character, and none a lone surrogate.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the program runs
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
