"""docs/howto/own-benchmark.md: the package on the page is installed as it stands, and its benchmark scores a model."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsebench.benchmarks import all_tasks, is_task, sampled
from sparsebench.errors import SparsebenchError
from sparsebench.plan import checks
from tests.benchmarks.conftest import run
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


def test_it_scores_a_model_and_its_errors_are_its_own(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsebench_likelier as theirs

    found = run(tiny_llama, "decoder", "likelier")
    assert (found.n, found.limited, found.chance) == (3, False, 0.5)
    assert {outcome.value for outcome in found.outcomes} <= {0.0, 1.0}
    part = run(tiny_llama, "decoder", "likelier", limit=2)
    assert part.outcomes == tuple(found.outcomes[place] for place in sampled(3, 2))
    told = r"task likelier: sparsebench_likelier:score: division by zero \(ZeroDivisionError\)"
    for theirs_now, culprit in ((lambda *_: 1 / 0, told), (lambda *_: 1.0, "gave a float, not a ScoreResult")):
        monkeypatch.setattr(theirs, "score", theirs_now)
        with pytest.raises(SparsebenchError, match=culprit):
            run(tiny_llama, "decoder", "likelier")


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
