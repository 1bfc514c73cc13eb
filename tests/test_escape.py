"""Text of others does nothing where it is shown."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sparsebench import escape

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
