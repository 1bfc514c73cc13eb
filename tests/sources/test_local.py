"""``path:`` and ``random``."""

import json
import os
from pathlib import Path

import pytest

from sparsebench import sources
from sparsebench.errors import SourceError
from sparsebench.sources import Cache, cache


def folder(path: Path) -> sources.Source:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text("{}")
    return sources.parse(f"path:{path}")


def test_a_folder_is_used_where_it_is_and_a_config_that_is_not_json_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "m")
    assert sources.fetch(source, Cache()) == tmp_path / "m"
    assert sources.size(source, Cache()) == 0
    assert sources.read_config(source, Cache()) == {"model_type": "bert"}
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(SourceError, match=r"config\.json: not JSON"):
        sources.read_config(source, Cache())


def test_the_fingerprint_is_the_content(tmp_path: Path) -> None:
    first, copy = folder(tmp_path / "a"), folder(tmp_path / "b")
    before = sources.fingerprint(first, Cache())
    assert before == sources.fingerprint(copy, Cache()) and before.startswith("sha256:")
    (tmp_path / "a" / "README.md").write_text("words")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "x").write_text("hidden")
    assert sources.fingerprint(first, Cache()) == before
    (tmp_path / "a" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    changed = sources.fingerprint(first, Cache())
    (tmp_path / "a" / "vocab.txt").write_text("a")
    more = sources.fingerprint(first, Cache())
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "other.safetensors")
    assert len({before, changed, more, sources.fingerprint(first, Cache())}) == 4


def test_files_of_one_relative_path_have_a_hash_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("m.gguf").write_bytes(name.encode())
        os.utime("m.gguf", (1, 1))  # as an archive unpacks them: sizes and times are the same
        found.append(Cache().sha256(Path("m.gguf")))
    assert found[0] != found[1]


def test_json_is_written_whole_or_not_at_all_and_readable_like_its_folder(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        cache.write_json(tmp_path / "a" / "m.lock", {"n": 1})
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "m.lock").stat().st_mode & 0o777 == 0o644
    (tmp_path / "a" / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        cache.write_json(tmp_path / "a" / "taken", {})
    with pytest.raises(TypeError):
        cache.write_json(tmp_path / "a" / "m.lock", {"n": object()})
    assert json.loads((tmp_path / "a" / "m.lock").read_text()) == {"n": 1}
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["m.lock", "taken"]


def test_hashes_are_computed_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    source = sources.parse(f"path:{file}")
    hashed: list[Path] = []
    real = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda path: hashed.append(path) or real(path))
    first = sources.fingerprint(source, Cache())
    assert sources.fingerprint(source, Cache()) == first and len(hashed) == 1
    (note,) = (Cache().root / "hashes").iterdir()
    note.write_text(note.read_text()[:20])  # a note that was cut short is ignored
    assert sources.fingerprint(source, Cache()) == first and len(hashed) == 2
    os.utime(file, ns=(0, 0))
    assert sources.fingerprint(source, Cache()) == first and len(hashed) == 3
    file.write_bytes(b"two")
    assert sources.fingerprint(source, Cache()) != first and len(hashed) == 4
    assert sources.read_config(source, Cache()) is None


def test_a_path_that_is_not_there_names_the_nearest_that_is(tmp_path: Path) -> None:
    folder(tmp_path / "smollm2")
    for ask in (sources.fetch, sources.fingerprint, sources.read_config):
        with pytest.raises(SourceError, match="no such file or folder") as caught:
            ask(sources.parse(f"path:{tmp_path}/smolm2/config.json"), Cache())
        assert str(tmp_path / "smollm2") in (caught.value.hint or "")
    with pytest.raises(SourceError) as caught:
        sources.fetch(sources.parse(f"path:{tmp_path}/zzz"), Cache())
    assert (caught.value.hint or "").endswith(f"exists is {tmp_path}")


def test_random_has_no_files() -> None:
    source = sources.parse("random")
    assert sources.fingerprint(source, Cache()) == "random"
    assert sources.size(source, Cache()) == 0 and sources.read_config(source, Cache()) is None
    with pytest.raises(SourceError, match="nothing to fetch"):
        sources.fetch(source, Cache())


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "named"))
    assert Cache().root == tmp_path / "named" and not Cache().root.exists()
    assert Cache(tmp_path).root == tmp_path
    monkeypatch.delenv("SPARSEBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in Cache().root.parents and Cache().root.name == "sparsebench"


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="SPARSEBENCH_CACHE") as caught:
        sources.fetch(sources.parse("wheel:p==1!x"), Cache(tmp_path / "file"))
    assert "wheel:p==1!x" in caught.value.message
