"""What a ledger says cannot act on the terminal that shows it."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsebench.cli import app as program
from sparsebench.cli.output import emit_table, emit_text, note
from sparsebench.ledger.store import Ledger
from tests.strangers import records

EVIL = "a\x1b]0;owned\x07\x1b[31m\x9b2J\rb\u202ec"
SHOWN = r"a\x1b]0;owned\x07\x1b[31m\x9b2J\rb\u202ec"


def harmless(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_and_notes_show_what_a_terminal_would_obey(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    emit_table([EVIL, "n"], [[EVIL, 1]])
    emit_text(f"{SHOWN if not terminal else EVIL}\n")
    note(EVIL)
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 3 and err.count(SHOWN) == 1
    assert harmless(out + err)


def test_into_a_pipe_data_goes_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    emit_text(EVIL)
    assert capsys.readouterr().out == EVIL


def test_no_verb_sends_a_strangers_text_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, folder = tmp_path / "theirs.duckdb", tmp_path / "records"
    folder.mkdir()
    found = records(EVIL)
    Ledger(ledger).ingest(found)
    for record in found:
        name = f"{record['cell_id']}.{record['status']}" if "cell_id" in record else "plan-x"
        (folder / f"{name}.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    scored = [record["variant"] for record in found if record.get("stage") == "benchmarks"]
    first, second = list(dict.fromkeys(variant["id"] for variant in scored if variant["model"].startswith("smol")))[:2]
    comparing = ["compare", first, second], ["compare", "smol", second]
    for words in (["sql", "FROM cells"], ["sql"], ["status"], *comparing, ["report", "--manifest", "sampl"]):
        shown = CliRunner().invoke(program.app, [*words, "--ledger", str(ledger)])
        error = "" if shown.exception is None else str(shown.exception)
        assert harmless(shown.output), words
        assert words == ["sql"] or r"\x1b[31m" in shown.output or EVIL in error, (words, shown.output, error)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (type("PanicException", (BaseException,), {})("called `unwrap()`\nat src/lib.rs"), 2, "called `unwrap()`"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "'.[measure]'"),
        (MemoryError(), 1, "memory ran out: MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), 1, "memory ran out"),
    ],
)
def test_a_crash_of_a_library_is_told_in_a_sentence(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crashes() -> None:
        raise error

    monkeypatch.setattr(program, "program", lambda verbs: crashes)
    with pytest.raises(SystemExit) as ended:
        program.main()
    said = capsys.readouterr().err
    assert ended.value.code == code and words in said and "Traceback" not in said
