"""Every option of every command, given what it cannot mean: refused by its name, at once, and nothing is written."""

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from sparsebench import bounded
from sparsebench.cli import options
from sparsebench.cli.app import app
from tests.adversarial import benign
from tests.command import call

WRONG = {
    options.file_to_read: ("plan {}", "manifest", ["", "folder", "/dev/zero"]),
    options.folder_to_read: ("report --figures={}", "--figures", ["", "file"]),
    options.records_to_read: ("ingest {}", "folders", ["", "/dev/zero"]),
    options.file_to_write: ("report --out={}", "--out", ["", "folder", "file/below", "link", "x" * 300]),
    options.folder_to_write: ("figures --out={}", "--out", ["", "file", "file/below", "x" * 300]),
}
"""By the parser of a path: a command that reads one by it, what that calls it, and what is refused."""
NUMBERS = ("nan", "inf", "-inf", "-1", "1e308", "1e309", str(10**18))


def of_type(*kinds: type) -> dict[str, Any]:
    """What typer knows of every option and argument of these types."""
    found = {}
    for command in app.registered_commands:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if name != "return":
                kind, info = get_args(hint)
                parts = {kind, *get_args(kind), *(one for part in get_args(kind) for one in get_args(part))}
                found.update({f"{command.callback.__name__} {name}": info} if parts & {*kinds} else {})
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a manifest and one of each wrong kind."""
    folder = tmp_path_factory.mktemp("home")
    benign.model(folder / "model")
    (folder / "tiny.yaml").write_text("version: 1\nmodels: [{name: tiny, source: path:model, family: decoder}]\n")
    (folder / "records").mkdir()
    (folder / "folder").mkdir()
    (folder / "file").write_text("")
    (folder / "link").symlink_to("nowhere")
    return folder


def refused(home: Path, given: list[str], name: str) -> None:
    """Call a command, and see that it refuses the option or argument ``name`` and leaves everything as it was."""
    before = sorted(home.rglob("*"))
    done = call(*given, cwd=home)
    assert done.returncode == 2, (given, done.returncode, done.stderr)
    assert name.lower() in done.stderr.lower() and "Traceback" not in done.stderr, (given, done.stderr)
    assert sorted(home.rglob("*")) == before, given
    assert not done.stdout, given


def words(command: str, value: str) -> list[str]:
    """The words of a command, with a value in its place."""
    return [word.format(value) for word in shlex.split(command)]


def test_every_path_has_one_of_the_parsers_and_every_number_its_limits() -> None:
    assert len(of_type(Path)) > 30 and len(of_type(int, float)) > 15, "the check must see the options"
    assert [name for name, info in of_type(Path).items() if info.parser not in WRONG] == []
    free = [name for name, info in of_type(int, float).items() if info.min is None or info.max is None]
    assert free == ["choose max_loss"], "it says by itself what it cannot be"


@pytest.mark.parametrize(("command", "name", "values"), WRONG.values())
def test_a_path_of_the_wrong_kind_or_where_nobody_may_write_is_refused(
    command: str, name: str, values: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in values:
        refused(home, words(command, value), name)
    if "file/below" in values:
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        refused(home, words(command, "not-there"), name)


EMPTY = "an empty text", [""]
SHARES = "--only", ["nan", "inf", "-0.5", "50", "-1%", "1e309"]


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        ("plan tiny.yaml --device={}", EMPTY), ("score model --task={}", EMPTY), ("inspect {}", EMPTY), ("sql {}", EMPTY),
        ("run tiny.yaml --jobs={}", ("--jobs", NUMBERS)), ("run tiny.yaml --silence={}", ("--silence", NUMBERS)),
        ("choose --model=tiny --max-loss={}", ("--max-loss", NUMBERS)), ("plan tiny.yaml --only=sparsity={}", SHARES),
        ("apply model 'prune: sparsegpt, sparsity: 0.5, damping: {}' --out p", ("damping", [".nan", "1e309"])),
        ("apply model 'prune: sparsegpt, sparsity: {}' --out p", ("sparsity", [".inf", "-1"])),
    ],
)  # fmt: skip
def test_a_value_that_means_nothing_is_refused(command: str, refusal: tuple[str, list[str]], home: Path) -> None:
    name, values = refusal
    for value in values:
        refused(home, words(command, value), name)


class Endless(io.TextIOBase):
    """A text that does not end."""

    def read(self, size: int | None = -1) -> str:
        assert size is not None and 0 < size < 10 * bounded.QUERY_CHARACTERS, "this would not end"
        return " " * size


def test_a_query_has_an_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Endless())
    refused(home, ["sql", "-f", "-"], "--file")


@pytest.mark.parametrize("taken", ["r-results.md", "r.html"])
def test_what_a_report_writes_beside_is_looked_at_first(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).mkdir()
    refused(tmp_path, ["report", "--out", "r.md", "--ledger", "none.duckdb"], taken)


def test_missing_folders_above_an_output_are_made(tmp_path: Path) -> None:
    assert call("init", "new/deep/mine.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "new/deep/mine.yaml").is_file()


def test_a_plan_is_shown_where_its_ledger_could_not_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    done = call("plan", "tiny.yaml", "--ledger", "new/l.duckdb", "--json", cwd=home)
    assert done.returncode == 0 and json.loads(done.stdout)
