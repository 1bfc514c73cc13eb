"""Every ``sparsebench`` command on a page is one that the program understands: verb, arguments, options and their values."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from sparsebench.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
VERBS = typer.main.get_command(app).commands


def commands(page: Path) -> list[list[str]]:
    """The words of each call in the page's shell blocks, behind ``sparsebench``."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        for part in re.split(r"&&|\|", line) if '"' not in line else [line]:
            words = shlex.split(part.partition(" > ")[0], comments=True)
            places = [place for place, word in enumerate(words) if word.split("/")[-1] == "sparsebench"]
            if places and "install" not in words[: places[0]] and "=" not in words[places[0]]:
                found.append(words[places[0] + 1 :])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path) -> None:
    for verb, *words in commands(page):
        if verb.startswith("--"):
            assert verb in ("--version", "--install-completion", "--show-completion")
        else:
            VERBS[verb].make_context(verb, words)
    assert len(commands(page)) > {"README.md": 8, "tutorial.md": 10}.get(page.name, -1), "the check must see them"
