"""Hostile folders of lm-eval's task files.

Nothing outside is read, nobody is asked, and each is refused by the name of its file and key, within 5 seconds of CPU.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sparsebench import sources
from sparsebench.benchmarks import OwnData, TaskSpec, kind_of
from sparsebench.benchmarks.harness import Harness
from sparsebench.benchmarks.own import content
from sparsebench.errors import SparsebenchError
from sparsebench.models.modules.load import load_model
from tests.adversarial.task_folders import CASES, SECRET, WRITES, Case, outside, write
from tests.adversarial.watch import audited, cheap
from tests.command import call
from tests.sampling import a_third

ROOT = Path(__file__).parents[2]


def scored(folder: Path, harness: Harness) -> Any:
    """The result, as a manifest's task over this folder is planned and then scored."""
    source, cache = sources.parse(f"path:{folder}"), sources.Cache()
    own = OwnData(kind_of("quiz"), content(source, cache), source=source.text)
    own.inspect("quiz", cache)
    return harness.score(TaskSpec("quiz", own=own), cache)


@pytest.fixture(scope="module")
def harness(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """A loaded model that has scored a harmless folder, so that all imports are done."""
    model = Harness(tiny_llama, "decoder", None, None, load_model(tiny_llama, "decoder"))
    for number, changes in enumerate(({}, WRITES)):
        found = scored(write(Case("harmless", (), changes), tmp_path_factory.mktemp(f"harmless{number}")), model)
        assert found.n == 1
    return model


@pytest.mark.parametrize("case", a_third(CASES), ids=lambda case: case.name[:80])
def test_a_hostile_folder(case: Case, tmp_path: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, current = write(case, tmp_path), tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)
    before = sorted(outside(folder / "x").iterdir())
    with cheap(), audited() as log:
        try:
            outcome: Any = scored(folder, harness)
        except SparsebenchError as error:
            outcome = error
    shown = str(outcome)
    assert isinstance(outcome, SparsebenchError) == bool(case.words), shown
    assert [word for word in case.words if word not in shown] == [], shown
    assert SECRET not in shown and len(shown) < 20_000
    home = os.environ["SPARSEBENCH_CACHE"]
    ours = (
        str(folder), home, os.path.dirname(os.path.realpath(Path(home) / "locks")), str(ROOT),
        sys.prefix, os.path.realpath(sys.prefix), sys.base_prefix, "/usr/",
        os.path.join(tempfile.gettempdir(), "sparsebench.partial-"), "/proc/self/", f"/proc/{os.getpid()}/", "/sys/",
    )  # fmt: skip
    assert [path for path in log if not path.startswith(ours)] == []
    assert sorted(outside(folder / "x").iterdir()) == before and not list(current.iterdir())


PLANNED = ["dataset_path pickle", "data_dir nowhere", "data_files 'http://127.0.0.1:9/x.jsonl'", "class"]
WORKED = ["doc_to_text: nested loops", "regexes_to_ignore: dear"]


@pytest.mark.parametrize(("exit_code", "names"), [pytest.param(2, PLANNED, marks=pytest.mark.long), (1, WORKED)])
def test_a_command_shows_no_traceback(exit_code: int, names: list[str], tmp_path: Path, tiny_llama: Path) -> None:
    cases = [case for case in CASES if case.name in names]
    assert len(cases) == len(names)
    lines = [
        "version: 1",
        f"models: [{{name: m, source: 'path:{tiny_llama}', family: decoder}}]",
        "benchmarks:",
        "  decoder:",
    ]
    for number, case in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        folder = write(case, tmp_path / str(number))
        file = folder / "quiz.yaml"
        file.write_text(file.read_text().replace("task: quiz", f"task: quiz{number}"))
        lines.append(f"  - {{task: quiz{number}, source: 'path:{folder}'}}")
    manifest = tmp_path / "m.yaml"
    manifest.write_text("\n".join(lines))
    done = call("score", tiny_llama, "--manifest", manifest, cwd=tmp_path)
    shown = done.stdout + done.stderr
    assert done.returncode == exit_code and "Traceback" not in shown, shown
    assert [case.words[1] for case in cases if case.words[1] not in shown] == [], shown
    assert not (tmp_path / "ran").exists()
