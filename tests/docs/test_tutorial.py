"""docs/tutorial.md: its commands, in order, as they stand, on a model that is small enough for a test."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsebench import sources
from sparsebench.benchmarks.catalog import all_tasks, data_sources
from sparsebench.errors import SourceError
from sparsebench.ledger import query
from sparsebench.sources import Cache
from sparsebench.steps.calibration import DEFAULT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
CACHE = Cache()
"""The user's own, made before any fixture: benchmark data is fetched once."""
MODEL = re.compile(r"(?<=source: |parsify )smollm2-135m")
BEFORE, AFTER = "{prune: wanda, sparsity: [0.3, 0.5],", "{prune: wanda, sparsity: [0.3, 0.5, 0.7],"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> None:
    """What the tasks and the calibration read; without an index, and nothing in the cache, the test is skipped."""
    try:
        for text in (DEFAULT.source, *all_tasks()["perplexity"].data, *data_sources("piqa")):
            sources.fetch(sources.parse(text), CACHE)
    except SourceError as error:
        pytest.skip(str(error))


@pytest.mark.long
def test_the_tutorial_works(data: None, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("wheels", "payloads", "native", "torch_extensions", "lm_eval_tasks", "datasets"):
        (CACHE.root / name).mkdir(exist_ok=True)
        (cache / name).symlink_to(CACHE.root / name)
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(cache))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "lab"
    folder.mkdir()
    (manifest,) = re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL)
    assert BEFORE in manifest
    (folder / "first.yaml").write_text(MODEL.sub(f'"path:{tiny_llama}"', manifest))

    blocks = re.findall(r"```sh\n(.+?)```", PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("pip install")]
    said: dict[str, list[str]] = {}
    for line in lines:
        if line in said:  # the second plan and run come after the manifest was changed
            text = (folder / "first.yaml").read_text()
            (folder / "first.yaml").write_text(text.replace(BEFORE, AFTER))
        words = MODEL.sub(f'"path:{tiny_llama}"', line).replace("sparsebench", f"{sys.executable} -m sparsebench", 1)
        done = subprocess.run(words, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said.setdefault(line, []).append(done.stdout)

    first, second = said["sparsebench plan first.yaml"]
    assert "\tyes\tnew" in first and "\tno\t" not in first
    new = [row for row in second.splitlines() if "\tyes\tnew" in row]
    assert new and all("70%" in row or "0.7" in row for row in new), second
    assert second.count("\tno\tdone") == len(first.splitlines()) - 1
    ledger = folder / "ledger" / "sparsebench.duckdb"
    rows = query.run(ledger, "SELECT method, sparsity, task FROM results").rows
    assert {row[:2] for row in rows} >= {("magnitude", 0.9), ("wanda", 0.7), ("dense", 0.0)}
    assert {row[2] for row in rows} >= {"perplexity", "piqa"}
    assert query.run(ledger, "SELECT * FROM latency WHERE method = 'magnitude'").rows
    assert all(len(output.splitlines()) > 1 for line in said if " sql " in line for output in said[line])
    assert list((folder / "pictures").glob("*.svg"))
    assert (folder / "pruned.packed").is_dir()
