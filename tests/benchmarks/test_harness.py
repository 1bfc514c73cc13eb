"""lm-eval's harness behind our interface, against lm-eval called as its own users call it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from sparsebench import benchmarks
from sparsebench.benchmarks import OwnData, ScoreResult, TaskSpec, all_tasks
from sparsebench.benchmarks.contract import sampled
from sparsebench.benchmarks.harness import _set_fewshot
from sparsebench.benchmarks.index import tasks_folder
from sparsebench.errors import BenchmarkError, UnsupportedError
from sparsebench.manifest.names import LM_EVAL
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from tests.benchmarks.conftest import Documents, hub, run, score_all

STOCK = {"piqa": ("piqa/piqa.yaml", "piqa"), "arc_easy": ("arc/arc_easy.yaml", "ARC-Easy")}


def stock(folder: Path, task: str, data: Path, batch: int, **settings: Any) -> dict[str, Any]:
    """What a user of lm-eval alone gets, on the same documents."""
    include, name = STOCK[task]
    own = {
        "include": str(tasks_folder() / include),
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(data / f"{name}.arrow")}},
        "training_split": None,
        "test_split": None,
    }
    (data / "stock").mkdir()
    (data / "stock" / "task.yaml").write_text(yaml.safe_dump(own))
    manager = TaskManager(include_path=str(data / "stock"), include_defaults=False)
    arguments = {"pretrained": str(folder), "dtype": "auto", "device": "cpu"}
    return simple_evaluate("hf", arguments, tasks=[task], batch_size=batch, task_manager=manager, **settings)


@pytest.mark.parametrize(
    ("model", "family", "task", "limit"),
    [
        ("tiny_llama", "decoder", "piqa", None),
        ("tiny_llama", "decoder", "arc_easy", 16),
        ("tiny_t5", "encoder-decoder", "piqa", None),
        ("tiny_t5", "encoder-decoder", "arc_easy", None),
    ],
)
def test_every_number_is_stock_lm_evals(
    documents: Documents,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    model: str,
    family: str,
    task: str,
    limit: int | None,
):
    folder = request.getfixturevalue(model)
    ours = run(folder, family, task, batch_size=16, limit=limit)
    every = documents[STOCK[task][1]]
    theirs = stock(folder, task, tmp_path, 16, samples={task: sampled(len(every), limit)})
    assert str(ours.protocol["prefix_sharing"]).startswith("off: ")
    metric = all_tasks()[task].metric
    reported, samples = theirs["results"][task], theirs["samples"][task]
    assert (ours.metric, ours.score) == (metric, reported[f"{metric},none"])
    assert ours.stderr == reported[f"{metric}_stderr,none"]
    values = {str(sample["doc_id"]): sample[metric] for sample in samples}
    assert {outcome.doc_id: outcome.value for outcome in ours.outcomes} == values
    assert 0 < ours.score < 1
    assert ours.n == len(ours.outcomes) == (limit or len(every))
    assert ours.limited == (limit is not None)
    assert ours.protocol["documents"] == len(every)


def test_protocol_says_whether_beginnings_are_shared(tiny_llama: Path, tiny_t5: Path, documents: Documents):
    def sharing(*model: Any, **settings: Any) -> Any:
        return run(*model, "piqa", limit=3, **settings).protocol["prefix_sharing"]

    assert sharing(tiny_llama, "decoder") == "on"
    assert sharing(tiny_llama, "decoder", batch_size=16) == "off: a batch size is given"
    assert sharing(tiny_t5, "encoder-decoder") == "off: lm-eval's own loop"


def test_chance_is_the_mean_over_documents_of_one_over_the_choices(tiny_llama: Path, documents: Documents):
    rows = [documents["ARC-Easy"][p] for p in sampled(len(documents["ARC-Easy"]), 7)]
    expected = sum(1 / len(row["choices"]["text"]) for row in rows) / len(rows)
    assert run(tiny_llama, "decoder", "arc_easy", limit=7).chance == pytest.approx(expected)
    assert run(tiny_llama, "decoder", "piqa", limit=3).chance == 0.5


def test_outcomes_are_paired_by_prompt(tiny_llama: Path, documents: Documents):
    whole = run(tiny_llama, "decoder", "piqa")
    part = run(tiny_llama, "decoder", "piqa", limit=5, batch_size=2)
    assert part.outcomes == tuple(whole.outcomes[p] for p in sampled(whole.n, 5))
    assert len({outcome.doc_hash for outcome in whole.outcomes}) == whole.n
    assert not run(tiny_llama, "decoder", "piqa", limit=1000).limited


def test_protocol_says_how(tiny_llama: Path, documents: Documents):
    protocol = run(tiny_llama, "decoder", "piqa", limit=3, batch_size=4).protocol
    wanted = {"task_version": "1.0", "split": "validation", "num_fewshot": 0, "fewshot_split": "", "batch_size": 4}
    wanted |= {"dtype": "bfloat16", "softmax_dtype": "bfloat16", "non_finite": 0, "chance_rule": "1/choices"}
    wanted |= {"data": benchmarks.data_sources("piqa")[0]}
    assert {key: protocol[key] for key in wanted} == wanted
    assert protocol["harness"].startswith("lm-eval 0.")


def test_documents_have_hashes(tiny_llama: Path, documents: Documents, monkeypatch: pytest.MonkeyPatch):
    first = run(tiny_llama, "decoder", "piqa", limit=5).protocol
    drawn = [documents["piqa"][place] for place in sampled(len(documents["piqa"]), 5)]
    hub(monkeypatch, {"validation": [drawn[place] for place in (1, 0, 2, 3, 4)]})
    other = run(tiny_llama, "decoder", "piqa").protocol
    assert len({one[f"{kind}_sha256"] for one in (first, other) for kind in ("documents", "prompts")}) == 4
    hub(monkeypatch, {"validation": drawn})
    same, again = (run(tiny_llama, "decoder", "piqa").protocol for _ in range(2))
    assert same["documents_sha256"] == first["documents_sha256"]
    assert same["prompts_sha256"] == again["prompts_sha256"]


def test_each_task_has_its_own_batch(tiny_llama: Path, documents: Documents):
    specs = [TaskSpec("piqa", 3, batch=2), TaskSpec("arc_easy", 3), TaskSpec("arc_easy", 3, batch=2)]
    found = score_all(tiny_llama, "decoder", [*specs, TaskSpec("perplexity", batch=2)])
    (error,) = (result for result in found if isinstance(result, Exception))
    sizes = sorted((result.task, result.protocol["batch_size"]) for result in found if result is not error)
    assert sizes == [("arc_easy", 2), ("arc_easy", 16), ("piqa", 2)]
    assert "remove `batch`" in (error.hint or "")


def test_a_failing_task_does_not_stop_the_others(tiny_llama: Path, documents: Documents):
    specs = [TaskSpec(name, limit=2) for name in ("mrpc_pair", "piqa", "no_such_task", "arc_easy")]
    found = score_all(tiny_llama, "decoder", specs)
    assert sum(isinstance(result, BenchmarkError) for result in found) == 2
    assert {(one.task, one.n) for one in found if isinstance(one, ScoreResult)} == {("piqa", 2), ("arc_easy", 2)}


def test_progress_is_not_printed(tiny_llama: Path, documents: Documents, capfd: pytest.CaptureFixture[str]):
    from tqdm.std import tqdm

    start, steps = tqdm.__init__, []
    run(tiny_llama, "decoder", "piqa", progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (48, 48)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert tqdm.__init__ is start
    captured = capfd.readouterr()
    assert not captured.out
    assert "it/s" not in captured.err


def poisoned(folder: Path, out: Path, word: str | None) -> Path:
    """A copy, its head untied, whose embedding of ``word`` (None: of every word) is NaN."""
    model, tokenizer = load_model(folder, "decoder"), load_tokenizer(folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    rows = slice(None) if word is None else tokenizer.convert_tokens_to_ids(word)
    model.get_input_embeddings().weight.data[rows] = torch.nan
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def test_a_document_without_likelihoods_is_wrong_and_a_model_without_them_fails(
    tiny_llama: Path, documents: Documents, tmp_path: Path
):
    whole = run(tiny_llama, "decoder", "piqa")
    broken = run(poisoned(tiny_llama, tmp_path / "cat", "cat"), "decoder", "piqa")
    hit = {
        str(place)
        for place, row in enumerate(documents["piqa"])
        # The last token of an answer is never an input.
        if "cat" in row["goal"].split() or any("cat" in row[key].split()[:-1] for key in ("sol1", "sol2"))
    }
    assert 0 < len(hit) < whole.n
    assert broken.protocol["non_finite"] == len(hit)
    for before, after in zip(whole.outcomes, broken.outcomes, strict=True):
        assert after.value == (0.0 if after.doc_id in hit else before.value)
    with pytest.raises(BenchmarkError, match="piqa.*not finite on any of 24"):
        run(poisoned(tiny_llama, tmp_path / "every", None), "decoder", "piqa")


def test_any_lm_eval_task_by_name(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"text": f"the cat sat on the {word}"} for word in ("mat", "house", "tree")]
    hub(monkeypatch, {"validation": rows, "test": rows})
    found = run(tiny_llama, "decoder", "lambada_standard")
    assert (found.metric, found.n, found.chance, found.limited) == ("acc", 3, 0.0, False)
    assert found.protocol["data"].startswith("hub ")
    assert run(tiny_llama, "decoder", "lambada_standard", num_fewshot=1).protocol["fewshot_split"] == "validation"


def test_examples_come_with_the_task(tiny_llama: Path, documents: Documents, monkeypatch: pytest.MonkeyPatch):
    rows = documents["piqa"][:10]
    hub(monkeypatch, {"train": documents["piqa"][10:], "validation": rows})
    plain, found = (run(tiny_llama, "decoder", "piqa", num_fewshot=number) for number in (None, 2))
    assert plain.n == found.n == 10
    assert not {one.doc_hash for one in found.outcomes} & {one.doc_hash for one in plain.outcomes}
    protocol = {"data": "hub baber/piqa/", "num_fewshot": 2, "fewshot_split": "train", "fewshot_seed": 1234}
    assert found.protocol | protocol == found.protocol
    hub(monkeypatch, None)
    with pytest.raises(BenchmarkError, match="piqa: the examples come from a split that only the hub has") as caught:
        run(tiny_llama, "decoder", "piqa", num_fewshot=2)
    assert "remove `num_fewshot`" in (caught.value.hint or "") and "mmlu" in (caught.value.hint or "")


def test_a_constant_answer_is_the_chance_of_classes(tiny_llama: Path, documents: Documents):
    found = run(tiny_llama, "decoder", "mrpc", limit=25)
    positive = sum(documents["mrpc"][p]["label"] for p in sampled(len(documents["mrpc"]), 25)) / 25
    assert found.chance == pytest.approx(max(positive, 1 - positive)) != 0.5
    assert found.protocol["chance_rule"] == "majority"


def test_a_task_without_outcomes_is_unsupported(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"page": "the cat sat on the mat"}]
    hub(monkeypatch, {"train": rows, "validation": rows, "test": rows})
    with pytest.raises(UnsupportedError, match="wikitext.*word_perplexity"):
        run(tiny_llama, "decoder", "wikitext")


def test_without_the_hub_the_error_names_the_ways_out(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    hub(monkeypatch, None)
    with pytest.raises(BenchmarkError) as caught:
        run(tiny_llama, "decoder", "commonsense_qa")
    assert "commonsense_qa" in caught.value.message
    assert "hub" in caught.value.message
    assert "piqa" in (caught.value.hint or "")


@pytest.mark.slow
@pytest.mark.long
def test_a_group_is_the_mean_over_its_documents(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    row = {"question": "the cat", "choices": ["sat", "ran on", "a dog", "it was"], "answer": 1, "subject": "x"}
    rows = [
        {**row, "question": f"the {word}", "answer": place} for place, word in enumerate(("cat", "dog", "mat", "tree"))
    ]
    hub(monkeypatch, {"test": rows, "dev": rows, "validation": rows})
    found = run(tiny_llama, "decoder", "mmlu_stem", limit=3)
    assert found.n == len({outcome.doc_id for outcome in found.outcomes}) == 3 * 19
    assert (found.metric, found.chance, found.limited) == ("acc", 0.25, True)
    assert all(outcome.doc_id.startswith("mmlu_") for outcome in found.outcomes)
    assert str(found.protocol["data"]).count("cais/mmlu/") == 19
    assert found.protocol["task_version"] == "2"


def test_a_folder_of_task_files_may_have_more_examples_than_documents():
    task = SimpleNamespace(eval_docs=[{}, {}], get_config=lambda key: None, set_fewshot_seed=lambda seed: None)
    task.set_config = lambda key, value: None
    _set_fewshot(task, TaskSpec("quiz", num_fewshot=3, own=OwnData(LM_EVAL, "")))
    for kind, given in ((LM_EVAL, None), ("choices", 0)):
        task.eval_docs = []
        _set_fewshot(task, TaskSpec("quiz", num_fewshot=given, own=OwnData(kind, "")))
