"""What is shipped works: manifests and the README's commands."""

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
MANIFESTS = ["quickstart.yaml", "examples/small.yaml"]


@pytest.mark.parametrize("name", [*MANIFESTS, "examples/g2p.yaml"])
def test_manifests_pass_the_preflight_offline(name: str) -> None:
    ready = prepare(PlanRequest(ROOT / name, offline=True))
    stages = {cell.stage for cell in ready.plan.cells}
    assert stages == {"make", "structure", "storage", "benchmarks", "latency", "memory"}
    assert {cell.variant.pruning_setting("sparsity") for cell in ready.plan.cells} >= {0.0, 0.1, 0.5, 0.9, 0.95, 0.99}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("examples/methods.yaml", {"make", "storage", "benchmarks"}),
        ("examples/calibration.yaml", {"make", "storage", "benchmarks"}),
        ("examples/vocabulary.yaml", {"make", "storage", "benchmarks"}),
        ("examples/kinds.yaml", {"make", "storage", "outputs", "benchmarks", "latency", "memory"}),
        ("examples/engines.yaml", {"make", "storage", "benchmarks", "latency", "memory"}),
        ("examples/llamacpp.yaml", {"make", "storage", "benchmarks", "latency", "memory"}),
        ("examples/llamacpp-coder.yaml", {"make", "storage", "benchmarks", "latency", "memory"}),
        ("examples/gguf.yaml", {"make", "storage", "benchmarks", "latency", "memory"}),
        ("examples/embeddinggemma.yaml", {"make", "structure", "storage", "benchmarks"}),
        ("examples/mpnet.yaml", {"make", "structure", "storage", "benchmarks"}),
        ("examples/skipping.yaml", {"make", "storage", "benchmarks", "latency", "memory"}),
        ("examples/g2p-skipping.yaml", {"make", "storage", "benchmarks"}),
        ("examples/shapes.yaml", {"make", "structure", "storage", "benchmarks", "latency", "memory"}),
        ("examples/coder.yaml", {"make", "structure", "storage", "benchmarks", "latency", "memory"}),
        ("examples/floors.yaml", {"make", "structure", "storage", "benchmarks"}),
        ("examples/answers.yaml", {"make", "benchmarks"}),
        ("examples/recovery.yaml", {"make", "structure", "storage", "benchmarks"}),
        ("examples/training.yaml", {"make", "structure", "storage", "benchmarks"}),
        ("examples/g2p-recovery.yaml", {"make", "structure", "storage", "benchmarks"}),
        ("examples/minilm-recovery.yaml", {"make", "structure", "storage", "benchmarks"}),
    ],
)
def test_examples_of_one_question_pass_the_preflight_offline(
    name: str, stages: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / name
    # Their package is an extra.
    if name in ("examples/llamacpp.yaml", "examples/llamacpp-coder.yaml", "examples/gguf.yaml"):
        monkeypatch.setitem(environment.versions(), "xllamacpp", "2026.10.0")
    if name == "examples/g2p-recovery.yaml":
        # Its words are made by a command that its head names.
        words = tmp_path / "g2p-words.jsonl"
        words.write_text('{"word": "abbot", "sounds": "AE B AH T"}\n')
        text = path.read_text()
        assert "path:../out/g2p-words.jsonl" in text
        path = tmp_path / path.name
        moved = text.replace("path:../out/g2p-words.jsonl", f"path:{words}")
        path.write_text(moved.replace("path:g2p/model", f"path:{ROOT}/examples/g2p/model"))
    ready = prepare(PlanRequest(path, offline=True))
    assert {cell.stage for cell in ready.plan.cells} == stages
    # A task without offline data would fail in the run.
    tasks = {str(cell.settings["task"]) for cell in ready.plan.cells if cell.stage == "benchmarks"}
    assert [task for task in tasks if not benchmarks.data_sources(task)] == []


@pytest.mark.parametrize(
    "name", ["examples/features.yaml", "examples/features-text.yaml", "examples/features-experts.yaml"]
)
def test_the_features_pass_the_preflight_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, release in {"xllamacpp": "2026.10.0", "pymetis": "2025.2"}.items():  # both are extras
        monkeypatch.setitem(environment.versions(), package, release)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    out = tmp_path / "out" / "features"
    out.mkdir(parents=True)
    # Stand-ins for what examples/features/prepare.py makes in minutes.
    shutil.copytree(ROOT / "examples" / "g2p" / "model", out / "assistant")
    classifier("bert", out / "classifier")
    written("mixtral", out / "mixture")
    for half in ("train", "test"):
        documents(out / f"questions-{half}.jsonl")
    for text in ("spelled", "spoken"):
        (out / f"{text}.jsonl").write_text('{"text": "abbot AE B AH T"}\n')
    for file in ("masks.safetensors", "elements.json", "tokens.txt"):
        (out / file).write_text("{}")
    ready = prepare(PlanRequest(tmp_path / name, offline=True))
    assert {cell.stage for cell in ready.plan.cells} == {"make", "storage", "benchmarks"}


def test_every_example_is_checked() -> None:
    source = Path(__file__).read_text()
    assert [path.name for path in (ROOT / "examples").glob("*.yaml") if f"examples/{path.name}" not in source] == []


@pytest.mark.parametrize(
    "name",
    [
        *MANIFESTS,
        *(
            f"examples/{name}.yaml"
            for name in ("methods", "calibration", "vocabulary", "engines", "coder", "skipping", "mpnet")
        ),
    ],
)
def test_every_wheel_is_pinned(name: str) -> None:
    models = yaml.safe_load((ROOT / name).read_text())["models"]
    parts = [part for model in models for part in sources.parse(model["source"]).parts]
    assert parts
    assert all(part.sha256 for part in parts)


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
        assert quotes.written(page.read_text(), said) == page.read_text(), (
            f"{page.name} quotes what is not so: make report"
        )


def test_the_published_report_is_short_enough_to_be_read() -> None:
    text = (ROOT / "report.md").read_text()
    # Formulas that stand alone have no words, and the bars of tables are none.
    words = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL).split()
    assert sum(re.search(r"\w", word) is not None for word in words) <= 6000
    assert text.count("\n![") <= 9
    assert len(re.findall(r"^\|[-| :]+\|$", text, re.MULTILINE)) <= 8
    cited = set(re.findall(r"docs/results\.md#(q\d+)", text))
    answered = {
        f"q{number}" for number in re.findall(r"^### Q(\d+)$", (ROOT / "docs" / "results.md").read_text(), re.MULTILINE)
    }
    assert len(cited) >= 20 and cited <= answered


@pytest.mark.setup
@pytest.mark.parametrize("target", ["test", "demo"])
def test_make_in_a_fresh_clone(target: str, tmp_path: Path) -> None:
    """The README's two commands, from nothing: minutes each."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    subprocess.run(["make", target], cwd=tmp_path / "clone", check=True)
