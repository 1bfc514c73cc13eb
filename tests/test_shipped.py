"""What is shipped works: manifests and the README's commands."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from sparsebench import benchmarks, environment, sources
from sparsebench.plan.preflight import PlanRequest, prepare
from tests.command import call
from tests.docs.test_generated import quotes
from tests.models.replaying import written
from tests.steps.shrink.test_labelled import classifier, documents

ROOT = Path(__file__).parent.parent
PINNED = "quickstart small methods calibration vocabulary engines coder skipping mpnet".split()
PLAIN = {path.stem: path for path in [ROOT / "quickstart.yaml", *(ROOT / "examples").glob("*.yaml")]}
FEATURES = [PLAIN.pop(name) for name in sorted(PLAIN) if name.startswith("features")]
STAGES = {
    "structure": "quickstart small g2p embeddinggemma mpnet shapes coder floors recovery training g2p-recovery minilm-recovery",
    "latency memory": "quickstart small g2p kinds engines llamacpp llamacpp-coder gguf skipping shapes coder",
    "outputs": "kinds",
}
"""Examples that measure more than their storage and their scores."""


@pytest.fixture(autouse=True)
def _extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, release in {"xllamacpp": "2026.10.0", "pymetis": "2025.2"}.items():
        monkeypatch.setitem(environment.versions(), package, release)


@pytest.mark.parametrize("name", PLAIN)
def test_examples_pass_the_preflight_offline(name: str, tmp_path: Path) -> None:
    path = PLAIN[name]
    if name == "g2p-recovery":  # its words are made by a command that its head names
        words = tmp_path / "g2p-words.jsonl"
        words.write_text('{"word": "abbot", "sounds": "AE B AH T"}\n')
        moved = path.read_text().replace("path:../out/g2p-words.jsonl", f"path:{words}")
        path = tmp_path / path.name
        path.write_text(moved.replace("path:g2p/model", f"path:{ROOT}/examples/g2p/model"))
    ready = prepare(PlanRequest(path, offline=True))
    more = {stage for stages, names in STAGES.items() if name in names.split() for stage in stages.split()}
    usual = {"make", "benchmarks"} if name == "answers" else {"make", "benchmarks", "storage"}
    assert {cell.stage for cell in ready.plan.cells} == usual | more
    # A task without offline data would fail in the run.
    tasks = {str(cell.settings["task"]) for cell in ready.plan.cells if cell.stage == "benchmarks"}
    assert [task for task in tasks if not benchmarks.data_sources(task)] == []
    if name in ("quickstart", "small", "g2p"):
        swept = {cell.variant.pruning_setting("sparsity") for cell in ready.plan.cells}
        assert swept >= {0.0, 0.1, 0.5, 0.9, 0.95, 0.99}


@pytest.mark.parametrize("path", FEATURES, ids=lambda path: path.stem)
def test_the_features_pass_the_preflight_offline(path: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    out = tmp_path / "out" / "features"
    out.mkdir(parents=True)
    # Stand-ins for what examples/features/prepare.py makes in minutes.
    shutil.copytree(ROOT / "examples" / "g2p" / "model", out / "assistant")
    classifier("bert", out / "classifier")
    config = out / "classifier" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 512}))
    written("mixtral", out / "mixture")
    for half in ("train", "test"):
        documents(out / f"questions-{half}.jsonl")
    for text in ("spelled", "spoken"):
        (out / f"{text}.jsonl").write_text('{"text": "abbot AE B AH T"}\n')
    for file in ("masks.safetensors", "elements.json", "tokens.txt"):
        (out / file).write_text("{}")
    ready = prepare(PlanRequest(tmp_path / "examples" / path.name, offline=True))
    assert {cell.stage for cell in ready.plan.cells} == {"make", "storage", "benchmarks"}


@pytest.mark.parametrize("name", PINNED)
def test_every_wheel_is_pinned(name: str) -> None:
    models = yaml.safe_load(PLAIN[name].read_text())["models"]
    parts = [part for model in models for part in sources.parse(model["source"]).parts]
    assert parts and all(part.sha256 for part in parts)


def test_the_lab_rehearses_without_the_hub() -> None:
    ready = prepare(PlanRequest(ROOT / "experiments.yaml", offline=True, rehearse=True))
    assert {model.family for model in ready.plan.models} == {"encoder", "decoder", "encoder-decoder"}
    assert {cell.variant.weights for cell in ready.plan.cells} == {"random"}
    assert not [cell for cell in ready.plan.cells if cell.stage == "benchmarks"]
    for name, size in ready.sizes.items():
        assert size.parameters > 1e9, name


def test_the_lab_stops_in_the_preflight_when_offline() -> None:
    done = call("run", "experiments.yaml", "--offline", cwd=ROOT)
    assert done.returncode == 2
    for word in ("opt-1.3b", "flan-t5-xl", "deberta-v2-xxlarge-mnli", "--rehearse", "HF_ENDPOINT"):
        assert word in done.stderr


def test_a_training_whose_making_has_no_record_is_told_with_its_budget(tmp_path: Path) -> None:
    """As a run with `--only stage=benchmarks` leaves it: it makes the model again, and records the scores alone."""
    ledger, report = tmp_path / "coder.duckdb", tmp_path / "report.md"
    for words in (
        ["ingest", ROOT / "ledger" / "published" / "coder.jsonl.zst", "--ledger", ledger],
        ["report", "--ledger", ledger, "--out", report],
    ):
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "blocks trained (at most 16 thousand tokens)" in report.read_text()


@pytest.mark.long
def test_the_published_report_is_what_the_published_records_give(tmp_path: Path) -> None:
    """`make report`, without the pictures, and what pages quote: a change of a template, a query or a record needs it again."""
    reported = re.findall(r"^REPORTED = (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert len(reported) >= 6
    shutil.copytree(ROOT / "figures", tmp_path / "figures")
    published, part = tmp_path / "published.duckdb", tmp_path / "report.duckdb"
    made, all_results = tmp_path / "report.md", tmp_path / "docs" / "results.md"
    records = ROOT / "ledger" / "published"
    for words in (
        ["ingest", records, "--ledger", published],
        ["ingest", *(records / f"{name}.jsonl.zst" for name in reported), "--ledger", part],
        ["report", "--ledger", part, "--out", made, "--results", all_results, "--figures", "figures"],
    ):
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert made.read_text() == (ROOT / "report.md").read_text(), "renew it: make report"
    assert all_results.read_text() == (ROOT / "docs" / "results.md").read_text(), "renew it: make report"
    said = quotes.said(published)
    for page in quotes.PAGES:
        assert quotes.written(page.read_text(), said) == page.read_text(), f"{page.name}: make report"


def test_the_published_report_is_short_enough_to_be_read() -> None:
    text = (ROOT / "report.md").read_text()
    # Formulas that stand alone have no words, and the bars of tables are none.
    words = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL).split()
    assert sum(re.search(r"\w", word) is not None for word in words) <= 6000
    assert text.count("\n![") <= 9
    assert len(re.findall(r"^\|[-| :]+\|$", text, re.MULTILINE)) <= 8
    cited = set(re.findall(r"docs/results\.md#(q\d+)", text))
    answered = re.findall(r"^### Q(\d+)$", (ROOT / "docs" / "results.md").read_text(), re.MULTILINE)
    assert len(cited) >= 20 and cited <= {f"q{number}" for number in answered}


@pytest.mark.setup
@pytest.mark.parametrize("target", ["test", "demo"])
def test_make_in_a_fresh_clone(target: str, tmp_path: Path) -> None:
    """The README's two commands, from nothing: minutes each."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    subprocess.run(["make", target], cwd=tmp_path / "clone", check=True)
