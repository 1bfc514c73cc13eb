"""The lock file: what a moving name of the hub meant at first is what is planned, fetched and recorded from then on."""

from pathlib import Path

import pytest

from sparsebench import sources
from sparsebench.errors import UserError
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.plan.resolve import Lock

FIRST, LATER = "a" * 40, "b" * 40
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8}
MANIFEST = """
version: 1
models: [{name: m, source: "hf:org/name@main", family: decoder}]
structure: {}
"""


def answering(monkeypatch: pytest.MonkeyPatch, commit: str) -> list[str]:
    """The hub's branch stands at ``commit``; returns the sources that it is asked for."""
    asked: list[str] = []

    def fingerprint(source: sources.Source, cache: object) -> str:
        asked.append(source.text)
        return source.revision if source.revision in (FIRST, LATER) else commit

    def config(source: sources.Source, cache: object) -> dict[str, object]:
        asked.append(source.text)
        return CONFIG

    monkeypatch.setattr(sources, "fingerprint", fingerprint)
    monkeypatch.setattr(sources, "read_config", config)
    return asked


def test_a_lock_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml.lock"
    path.write_text('{"hf:org/na')
    with pytest.raises(UserError, match=r"mine\.yaml\.lock: not JSON"):
        Lock(path)


def test_a_plan_stays_at_the_commit_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MANIFEST)
    answering(monkeypatch, FIRST)
    before = prepare(PlanRequest(path))
    assert [model.source for model in before.plan.models] == [f"hf:org/name@{FIRST}"]
    asked = answering(monkeypatch, LATER)
    again = prepare(PlanRequest(path))
    assert [model.source for model in again.plan.models] == [f"hf:org/name@{FIRST}"]
    assert [cell.id for cell in again.plan.cells] == [cell.id for cell in before.plan.cells]
    assert set(asked) == {f"hf:org/name@{FIRST}"}, "nothing is asked about the branch any more"
    path.with_suffix(".lock").unlink()
    assert [model.source for model in prepare(PlanRequest(path)).plan.models] == [f"hf:org/name@{LATER}"]


@pytest.mark.parametrize("notation", ["hf:datasets/org/name@main!data/a.jsonl", "hf:org/name@main"])
def test_only_the_revision_changes(notation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, FIRST)
    lock = Lock(tmp_path / "mine.lock")
    found = lock.pin(sources.parse(notation), sources.Cache())
    assert found.text == notation.replace("@main", f"@{FIRST}")
    assert Lock(tmp_path / "mine.lock").commits == {notation: FIRST}


@pytest.mark.parametrize("notation", [f"hf:org/name@{LATER}", "path:here"])
def test_what_cannot_move_is_not_noted(notation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, FIRST)
    source = sources.parse(notation, tmp_path)
    assert Lock(tmp_path / "mine.lock").pin(source, sources.Cache()) == source
    assert not (tmp_path / "mine.lock").exists()


def test_a_lock_that_is_a_link_is_neither_read_nor_written(tmp_path: Path) -> None:
    elsewhere = tmp_path / "secret.json"
    elsewhere.write_text("{}")
    (tmp_path / "m.lock").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"m\.lock: a link to"):
        Lock(tmp_path / "m.lock")
