"""``--help`` on a terminal of 80 columns: nothing cut, no example broken, and every example understood."""

import inspect
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from sparsebench import __version__
from sparsebench.cli import app as program

app = program.app
ROOT: click.Group = typer.main.get_command(app)
VERBS = list(ROOT.commands)
LISTED: Any = typer.main.get_command(program.program([])).commands
"""The commands as ``--help`` lists them, none of which is imported."""


def examples(verb: str) -> Iterator[str]:
    """The commands below the last ``\\b`` of a verb's docstring, continued lines joined."""
    text = inspect.getdoc(ROOT.commands[verb].callback) or ""
    for line in text.rpartition("\b")[2].replace("\\\n", " ").splitlines():
        yield from (part.strip() for part in line.split("&&") if part.strip())


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_eighty_columns(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in shown.output and "``" not in shown.output
    assert [line for line in lines if "…" in line and "path:…" not in line and "hf:…" not in line] == [], "it is cut"
    text = inspect.getdoc(ROOT.commands[verb].callback) or ""
    for paragraph in text.partition("\b")[0].strip().split("\n\n"):
        if "\n" in paragraph:  # its line breaks are kept
            assert max(map(len, paragraph.splitlines())) <= 78, f"broken twice: {paragraph}"
    for line in text.rpartition("\b")[2].strip().splitlines():
        assert f" {line}".rstrip() in [shown.rstrip() for shown in lines], f"broken: {line}"


@pytest.mark.parametrize("verb", ["sql", "figures", "report", "ingest", "tables", "compare"])
def test_a_command_without_a_manifest_does_not_speak_of_its_ledger(verb: str) -> None:
    (told,) = (getattr(one, "help", "") for one in ROOT.commands[verb].params if one.opts == ["--ledger"])
    assert "SPARSEBENCH_LEDGER" in told and "manifest" not in told


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_understood_and_the_list_of_verbs_has_the_first_line(verb: str) -> None:
    found = list(examples(verb))
    assert LISTED[verb].help == (inspect.getdoc(ROOT.commands[verb].callback) or "").splitlines()[0]
    assert any(f"sparsebench {verb}" in example for example in found)
    for example in found:
        program, name, *words = shlex.split(example.partition(" > ")[0])
        assert program == "sparsebench"
        ROOT.commands[name].make_context(name, words)


def test_a_verb_imports_no_other_verbs_module() -> None:
    code = "import sys; from sparsebench.cli.app import program; program([{}]); print('sparsebench.cli.run' in sys.modules)"
    for verb, imported in (("", "False"), ("'sql'", "False"), ("'run'", "True")):
        done = subprocess.run([sys.executable, "-c", code.format(verb)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == imported


def test_python_dash_m_is_the_same_program() -> None:
    command = [sys.executable, "-m", "sparsebench", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"sparsebench {__version__}\n"


def completed(words: str, shell: str) -> str:
    """What ``--install-completion`` installs calls the program like this at every tab."""
    ask = {
        "_SPARSEBENCH_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    return CliRunner().invoke(app, [], prog_name="sparsebench", env=ask).output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_completes_verbs(shell: str) -> None:
    shown = completed("sparsebench in", shell)
    assert [verb in shown for verb in ("init", "ingest", "inspect", "apply")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("measure model --engine deep", ["deepspeed", "deepspeed-zero3"]),
        ("pack model --format arch", ["archive"]),
        ("score model --task arc_", ["arc_easy", "arc_challenge"]),
    ],
)
def test_completion_completes_names(words: str, names: list[str]) -> None:
    assert set(names) <= set(completed(f"sparsebench {words}", "bash").split())
