"""Rows from other packages: joined where they are right, refused by name where they are not."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sparsebench import plugins
from sparsebench.errors import UserError
from sparsebench.plan.fingerprint import cell_id
from sparsebench.plugins import table
from sparsebench.storage import Format, formats

WRONG = "no row at all"


def plugged(monkeypatch: pytest.MonkeyPatch, value: str, *names: str) -> None:
    entries = [EntryPoint(name, value, "sparsebench.formats") for name in names or ("theirs",)]
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: entries)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("nowhere_to_be_found:ROW", "cannot be loaded: No module named 'nowhere_to_be_found'"),
        (f"{__name__}:ABSENT", "cannot be loaded"),
        ("unfinished_plugin:ROW", "cannot be loaded: invalid syntax"),
        (f"{__name__}:WRONG", "names a str, not a Format"),
    ],
)
def test_a_plugin_that_is_broken_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "unfinished_plugin.py").write_text("ROW =\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugged(monkeypatch, value)
    with pytest.raises(UserError, match=f"'theirs' in sparsebench.formats {says}") as caught:
        table((), Format, "sparsebench.formats")
    assert value in (caught.value.hint or "")


def test_a_plugin_does_not_take_the_place_of_a_row_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, f"{__name__}:THEIRS")
    with pytest.raises(UserError, match="'theirs' in sparsebench.formats is there twice") as caught:
        table((replace(THEIRS, libraries=()),), Format, "sparsebench.formats")
    assert "sparsebench itself" in caught.value.message and f"{__name__}:THEIRS" in (caught.value.hint or "")
    plugged(monkeypatch, f"{__name__}:THEIRS", "one", "other")
    with pytest.raises(UserError, match="'one'.*'other'"):
        table((), Format, "sparsebench.formats")


THEIRS = replace(formats()["packed"], name="theirs", libraries=("numpy",))


@pytest.fixture
def fresh() -> Iterator[None]:
    formats.cache_clear()
    yield
    formats.cache_clear()


def test_a_format_joins_its_library_the_ids(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    plugged(monkeypatch, f"{__name__}:THEIRS")
    assert list(formats()) == ["dense", "packed", "archive", "theirs"]
    one = cell_id("storage", "v", {"formats": ["theirs"]})
    monkeypatch.setitem(formats(), "theirs", replace(THEIRS, libraries=()))
    assert cell_id("storage", "v", {"formats": ["theirs"]}) != one
