"""Tasks over data of one's own in a manifest: what they are called and identified by, and what is refused with its line."""

import json
import re
import shutil
from pathlib import Path

import pytest

from sparsebench.manifest.problems import ManifestError
from sparsebench.plan.estimate import tokens
from sparsebench.plan.expand import Plan
from sparsebench.plan.single import SingleModel, manifest_tasks
from sparsebench.plan.stages import document_count
from sparsebench.sources import Cache
from tests.plan.planning import refusal, written

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "own-data.md").read_text(encoding="utf-8")
MODELS = """version: 1
models:
  - {{name: llama, source: "path:{llama}", family: decoder}}
  - {{name: t5, source: "path:{t5}", family: encoder-decoder}}
  - {{name: bert, source: "path:{bert}", family: encoder}}
structure: null
storage: null
benchmarks:
"""
FILES = {
    "notes.jsonl": '{"text": "the cat sat on the mat"}\n',
    "quiz.jsonl": next(re.finditer(r'`(\{"question".*?\})`', PAGE))[1] + "\n",
    "facts.csv": "input,target\nthe cat,sat\n",
    "pairs.csv": "sentence1,sentence2,score\na,b,1\n",
    "tickets.jsonl": '{"text": "a", "label": "b"}\n',
    "tasks/capitals.yaml": "task: capitals\n",
    "wiki.test.raw": "the cat\n",
}
"""What the page's examples name."""


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Path, tiny_t5: Path, tiny_bert: Path) -> Path:
    """A folder with the page's files, and a beginning of a manifest."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "head").write_text(MODELS.format(llama=tiny_llama, t5=tiny_t5, bert=tiny_bert))
    return tmp_path


def planned(folder: Path, tasks: str) -> Plan:
    """The plan of a manifest with these lines under `benchmarks`, which begin on line 10."""
    return written(folder, (folder / "head").read_text() + tasks).plan


def ids(plan: Plan) -> dict[str, str]:
    return {cell.settings["task"]: cell.id for cell in plan.cells}


def refused(folder: Path, tasks: str) -> str:
    return " ".join(refusal(folder, (folder / "head").read_text() + tasks).split())


def test_the_pages_examples_are_plans(folder: Path) -> None:
    shown = re.findall(r"```yaml\nbenchmarks:\n(.*?)```", PAGE, re.DOTALL)
    assert len(shown) == 2 and len(PAGE.splitlines()) <= 60
    shown.append("  decoder:\n    - " + next(re.finditer(r"`(\{task: wikitext2, source.*?\})`", PAGE))[1] + "\n")
    # The tiny models take 256 tokens.
    plans = [planned(folder, text.replace("512", "64").replace("256", "32")) for text in shown[:2]]
    assert set(ids(plans[0])) == {
        "perplexity-notes", "choices-quiz", "generation-facts", "generation-facts-chrf", "facts", "similarity-pairs",
        "probe-tickets",
    }  # fmt: skip
    assert set(ids(plans[1])) == {"capitals"}
    assert "windows of 2,048 tokens, where it takes 256" in refused(folder, shown[2])
    assert set(ids(planned(folder, shown[2].replace("raw}", "raw, length: 128}")))) == {"wikitext2"}


NOTES = "  decoder:\n    - {{task: perplexity, source: path:{}, length: 64}}\n"


def test_ids_hold_the_text_and_the_settings_and_not_the_path(folder: Path) -> None:
    def identified(tasks: str) -> str:
        (cell,) = planned(folder, tasks).cells
        assert str(folder) not in json.dumps(cell.settings)
        return cell.id

    here = NOTES.format("notes.jsonl")
    before = identified(here)
    (folder / "there").mkdir()
    shutil.copy(folder / "notes.jsonl", folder / "there" / "notes.jsonl")
    assert identified(NOTES.format("there/notes.jsonl")) == before
    other = identified(here.replace("64", "32"))
    (folder / "notes.jsonl").write_text('{"text": "the dog sat on the mat"}\n')
    assert len({before, other, identified(here)}) == 3


def test_the_estimate_knows_about_how_much_there_is(folder: Path) -> None:
    (folder / "notes.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 1000)  # 35 kB: 8,700 tokens or so
    (folder / "quiz.jsonl").write_text(FILES["quiz.jsonl"] * 50)
    columns = "columns: {context: question, choices: options, gold: answer}"
    quiz = "    - {{task: choices, source: path:quiz.jsonl, {}}}\n"
    notes, choices = planned(folder, NOTES.format("notes.jsonl") + quiz.format(columns)).cells
    assert [(cell.settings["task"], cell.documents) for cell in (notes, choices)] == [
        ("perplexity-notes", 136), ("choices-quiz", 50),
    ]  # fmt: skip
    assert tokens(notes) == 136 * 64 and document_count(choices) == 50
    (asked,) = planned(folder, "  decoder:\n" + quiz.format(f"limit: 5000, {columns}")).cells
    assert document_count(asked) == 50, "a limit above what there is"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{task: perplexity, source: path:note.jsonl}", ["no such file", "notes.jsonl"]),
        ("{task: perplexity, source: random}", ["mine.yaml:10:34", "untrained weights"]),
        ("{task: perplexity, source: path:notes.jsonl, field: body}", ["no field 'body'", "text"]),
        ("{task: perplexity, source: path:notes.jsonl, length: 300}", ["llama: windows of 300", "256"]),
        ("{task: perplexity, source: path:notes.jsonl, length: 64, stride: 65}", ["stride", "at most 64"]),
        ("{task: perplexity, source: path:notes.jsonl, stride: 1025}", ["stride", "at most 1,024"]),
        ("{task: perplexity, length: 64}", ["takes no `length` without a `source`"]),
        ("{task: perplexity, source: path:notes.jsonl, columns: {a: b}}", ["takes no `columns`"]),
        ("{task: choices}", ["`choices` asks for data of your own"]),
        ("{task: choices, source: path:quiz.jsonl}", ["'context'", "question"]),
        ("{task: choices, source: path:quiz.jsonl, columns: {contxt: question}}", ["no `contxt`", "context"]),
        ("{task: generation, source: path:facts.csv, num_fewshot: 2}", ["takes no `num_fewshot`"]),
        ("{task: probe, source: path:tickets.jsonl}", ["`probe` is for encoder models"]),
        ("{task: perplexity, source: path:notes.jsonl, name: boolq}", ["a task `boolq` already"]),
        ("{task: capitols, source: path:tasks}", ["no task 'capitols'", "capitals"]),
        ("{task: capitals, source: path:tasks, name: mine}", ["takes no `name`"]),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_line(folder: Path, entry: str, words: list[str]) -> None:
    said = refused(folder, f"  decoder:\n    - {entry}\n")
    assert "mine.yaml:10:" in said
    assert all(word in said for word in words), said


def test_a_task_kept_to_other_models_is_checked_for_the_one_scored(folder: Path, tiny_llama: Path) -> None:
    def tasks(length: int) -> list[str]:
        entry = NOTES.format("notes.jsonl").replace("64", f"{length}, models: llama")
        # Data of other families are not looked for.
        theirs = "  encoder:\n    - {task: probe, source: 'hf:datasets/org/nowhere!a.jsonl'}\n"
        (folder / "mine.yaml").write_text((folder / "head").read_text() + entry + theirs)
        model = SingleModel("mine", tiny_llama, "decoder")
        return [task.task for task in manifest_tasks(folder / "mine.yaml", model, Cache(offline=True))]

    assert tasks(64) == ["perplexity-notes"]
    with pytest.raises(ManifestError, match="mine: windows of 300"):
        tasks(300)


def test_two_texts_of_one_name_are_refused_and_one_text_for_two_models_is_not(folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "there" / "notes.jsonl").write_text('{"text": "a dog"}\n')
    both = NOTES.format("notes.jsonl") + NOTES.format("there/notes.jsonl").removeprefix("  decoder:\n")
    assert "mine.yaml:11:" in (said := refused(folder, both)) and "a second task called `perplexity-notes`" in said
    plan = planned(folder, both.replace("there/notes.jsonl,", "there/notes.jsonl, name: others,"))
    assert set(ids(plan)) == {"perplexity-notes", "others"}
    twice = NOTES.format("notes.jsonl") + NOTES.format("notes.jsonl").removeprefix("  decoder:\n")
    assert len(planned(folder, twice).cells) == 1


def test_an_encoder_without_the_head_that_a_task_needs_is_refused(folder: Path) -> None:
    columns = "columns: {context: question, choices: options, gold: answer}"
    said = refused(folder, f"  encoder:\n    - {{task: choices, source: path:quiz.jsonl, {columns}}}\n")
    assert "bert: it needs a masked-language-model head" in said and "mine.yaml:10:" in said
    # So are lm-eval's tasks, with a row of ours or without; what the model can do is named.
    both = refused(folder, "  encoder:\n    - {task: piqa}\n    - {task: boolq}\n    - {task: sst2_probe}\n")
    assert [line in both for line in ("mine.yaml:10:", "mine.yaml:11:", "mine.yaml:12:")] == [True, True, False]
    assert "sciq_retrieval" in both and "glue_rte" not in both
    planned(folder, "  encoder: [{task: sst2_probe}]\n")


def test_data_that_cannot_be_reached_are_told_at_their_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused(folder, "  decoder:\n    - {task: wikitext2, length: 64}\n")
    assert "mine.yaml:10:" in said and "datasets/Salesforce/wikitext" in said
    source = "source: 'hf:datasets/nobody/nothing@main!a.csv'"
    said = refused(folder, f"  decoder:\n    - {{task: choices, {source}, columns: {{context: question}}}}\n")
    assert "benchmarks.decoder[0].source" in said and "columns" not in said.partition("10 |")[0]


def test_a_calibration_text_that_is_also_scored_is_refused(folder: Path) -> None:
    read = "calibration: {source: path:notes.jsonl}\nvariants: [{prune: wanda, sparsity: 0.5}]\n"
    more = NOTES.format("notes.jsonl") + read
    assert "the calibration text is part of" in refused(folder, more)
    planned(folder, more.replace("notes.jsonl}", "notes.jsonl, allow_overlap: true}"))
