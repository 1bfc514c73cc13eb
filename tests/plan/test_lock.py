"""The lock file: what a moving name of the hub meant at first is what is planned, fetched and recorded from then on."""

from collections.abc import Callable
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


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text('{"hf:org/na'), r"m\.lock: not JSON"),
        (lambda path: path.symlink_to("secret.json"), r"m\.lock: a link to"),
    ],
)
def test_a_lock_that_is_none_is_named(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    make(tmp_path / "m.lock")
    with pytest.raises(UserError, match=said):
        Lock(tmp_path / "m.lock")


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


@pytest.mark.parametrize(
    ("notation", "moves"),
    [
        ("hf:datasets/org/name@main!data/a.jsonl", True), ("hf:org/name@main", True), (f"hf:org/name@{LATER}", False),
        ("path:here", False),
    ],
)  # fmt: skip
def test_only_a_revision_that_moves_is_noted_and_changes(
    notation: str, moves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, FIRST)
    source = sources.parse(notation, tmp_path)
    found = Lock(tmp_path / "mine.lock").pin(source, sources.Cache())
    if moves:
        assert found.text == notation.replace("@main", f"@{FIRST}")
        assert Lock(tmp_path / "mine.lock").commits == {notation: FIRST}
    else:
        assert found == source and not (tmp_path / "mine.lock").exists()
