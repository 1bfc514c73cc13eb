"""What is shown: text of others does nothing there, no address has a password, and a log tells how far a step is."""

import os
import pickle
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sparsebench import escape, progress
from sparsebench.errors import MeasureError, ModelError, SourceError, library_errors, redacted

MARKS = st.text(st.sampled_from("ab1 \\`*_[](){}<>&|$~!#+-=.:/\"'\n\t\x1b\x9b\u202e\xa0é"), max_size=30)
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def shown(markdown: str) -> tuple[set[str], str]:
    """What kinds of token there are in a paragraph's line, and what is read there."""
    (inline,) = [token for token in PARSER.parse(markdown) if token.type == "inline"]
    children = inline.children or []
    return {child.type for child in children}, "".join(child.content for child in children)


@given(MARKS)
def test_markdown_says_the_same_and_does_nothing(text: str) -> None:
    line = f"{escape.markdown(text)}x"
    kinds, said = shown(line)
    assert kinds <= {"text", "text_special"}
    assert said == escape.visible(re.sub(r"\s+", " ", text)).lstrip() + "x"
    assert [token.type for token in PARSER.parse(line)] == ["paragraph_open", "inline", "paragraph_close"]


@given(MARKS, MARKS)
def test_cells_stay_cells(first: str, second: str) -> None:
    for write in (escape.markdown, escape.code):
        tokens = PARSER.parse(f"| h | h |\n| - | - |\n| {write(first)} | {write(second)} |\n")
        cells = [token for token in tokens if token.type == "inline"]
        kinds = {child.type for cell in cells for child in cell.children or []}
        assert len(cells) == 4 and kinds <= {"text", "text_special", "code_inline"}


@pytest.mark.parametrize("text", ["arc_easy", "3.11.7", "-1.5", "wanda/row 2:4", "+0.3", "2.8.0+cpu", "é – ×", "(a)"])
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert escape.markdown(text) == text == escape.visible(text)
    assert escape.code(text) == f"`{text}`"


@pytest.mark.parametrize("text", ["see https://a.example/b", "ftp://a.example", "www.a.example", "hf:org/name // www"])
def test_an_address_is_no_link_on_github(text: str) -> None:
    line = escape.markdown(text)
    assert "://" not in line and "www." not in line  # what its extension of Markdown looks for, before escapes are read
    assert shown(line)[1] == text


def test_a_terminal_is_sent_nothing_that_it_obeys() -> None:
    assert escape.visible("\x1b]0;t\x07\x9b31m\r\u202e\n×") == r"\x1b]0;t\x07\x9b31m\r\u202e" + "\n×"


SECRET = "https://me:pass%40word@mirror.example/path"
SCRIPT = """
import logging, os, sys
from sparsebench.errors import redact_stderr
redact_stderr()
logging.warning("retrying %s", os.environ["HF_ENDPOINT"])
raise ValueError(os.environ["HF_ENDPOINT"])
"""


def test_errors_keep_no_password_of_an_address() -> None:
    error = SourceError(f"no answer from {SECRET}", f"see {SECRET}")
    for shown in (str(error), repr(error), error.message, error.hint, str(pickle.loads(pickle.dumps(error)))):
        assert shown and "mirror.example/path" in shown
        assert "me:" not in shown and "word" not in shown


def test_what_is_no_password_stays() -> None:
    for text in ("hf:org/name@main", "https://host/a@b", "someone@host", "wheel:a==1!b@c"):
        assert redacted(text) == text


def test_a_process_prints_no_password_of_its_environment() -> None:
    env = os.environ | {"HF_ENDPOINT": SECRET}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert done.stderr.count("mirror.example/path") == 2, done.stderr
    assert "pass" not in done.stderr


@pytest.mark.parametrize(("error", "kind"), [(MemoryError(), MeasureError), (ValueError("no key `x`"), ModelError)])
def test_exhausted_memory_is_not_blamed_on_a_file(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind), library_errors("model.safetensors: it cannot be loaded", "fetch it again"):
        raise error


@pytest.mark.parametrize(
    ("clock", "steps", "lines"),
    [
        (
            [0.0, 30.0, 61.0, 90.0, 130.0],
            [(1, 8), (2, 8), (3, 8), (4, 8)],
            ["… tiny: 25%, 3m left", "… tiny: 50%, 2m left"],
        ),
        (
            [0.0, 600.0, 610.0, 670.0, 730.0],
            [(4, 4), (1, 4), (2, 4), (3, 4, "loss 2.5, 9m left")],
            ["… tiny: 100%, 0s left", "… tiny: 50%, 60s left", "… tiny: 75%, loss 2.5, 9m left"],
        ),
    ],
    ids=["a line a minute", "the time left is of this step"],
)
def test_a_log_tells_how_far_a_step_is(
    clock: list[float],
    steps: list[tuple[Any, ...]],
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter(clock)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with progress.progress("tiny") as advance:
        for step in steps:
            advance(*step)
    assert capsys.readouterr().err.splitlines() == lines
