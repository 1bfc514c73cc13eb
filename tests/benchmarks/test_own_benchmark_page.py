"""docs/howto/own-benchmark.md: the package on the page is installed as it stands, and its benchmark scores a model."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsebench.benchmarks import ScoredModel, ScoreResult, TaskSpec, all_tasks, is_task, sampled, score
from sparsebench.errors import SparsebenchError
from sparsebench.plan import checks
from sparsebench.sources import Cache
from tests.manifest.loading import load_text
from tests.steps.plugin_page import install, length

WHOLE = (Path(__file__).parents[2] / "docs" / "howto" / "own-benchmark.md").read_text(encoding="utf-8")
PAGE = WHOLE.split("## A benchmark as a plugin")[1].split("\n## ")[0]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package on sys.path."""
    install(PAGE, tmp_path, monkeypatch)
    all_tasks.cache_clear()
    checks._task_names.cache_clear()
    yield
    all_tasks.cache_clear()
    checks._task_names.cache_clear()
    sys.modules.pop("sparsebench_likelier", None)


def scored(folder: Path, *tasks: TaskSpec) -> dict[str, ScoreResult | SparsebenchError]:
    found: dict[str, ScoreResult | SparsebenchError] = {}
    score(ScoredModel(folder, "decoder"), tasks, Cache(), lambda spec, result: found.setdefault(spec.task, result))
    return found


def test_it_is_short() -> None:
    assert length(PAGE) <= 50


def test_a_manifest_can_name_it_for_its_family() -> None:
    assert is_task("likelier")
    text = (
        "version: 1\nmodels:\n- {{name: m, source: hf:a/m, family: {0}}}\nbenchmarks: {{{0}: [{{task: likelier}}]}}\n"
    )
    (task,) = load_text(text.format("decoder"), "page.yaml").manifest.benchmarks.of("decoder")
    assert task.task == "likelier"
    with pytest.raises(SparsebenchError, match="`likelier` is for decoder"):
        load_text(text.format("encoder"), "page.yaml")


def test_it_scores_a_model_and_its_errors_are_its_own(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsebench_likelier as theirs

    found = scored(tiny_llama, TaskSpec("likelier"))["likelier"]
    assert isinstance(found, ScoreResult)
    assert (found.n, found.limited, found.chance) == (3, False, 0.5)
    assert {outcome.value for outcome in found.outcomes} <= {0.0, 1.0}
    part = scored(tiny_llama, TaskSpec("likelier", limit=2))["likelier"]
    assert isinstance(part, ScoreResult)
    assert part.outcomes == tuple(found.outcomes[place] for place in sampled(3, 2))

    def broken(*_: object) -> object:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(theirs, "score", broken)
    error = scored(tiny_llama, TaskSpec("likelier"))["likelier"]
    assert isinstance(error, SparsebenchError)
    assert "task likelier: sparsebench_likelier:score: by nothing (ZeroDivisionError)" in error.message
    monkeypatch.setattr(theirs, "score", lambda *_: 1.0)
    error = scored(tiny_llama, TaskSpec("likelier"))["likelier"]
    assert isinstance(error, SparsebenchError)
    assert "gave a float, not a ScoreResult" in error.message
