"""Classification heads on their own tasks: accuracy, labels, spellings, and what does not fit."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.benchmarks import all_tasks
from sparsebench.benchmarks.classification import head_labels, match
from sparsebench.errors import BenchmarkError
from sparsebench.models.files.text import load_tokenizer
from tests.benchmarks.conftest import Documents, changed, hub, run
from tests.benchmarks.test_classify import logits

NLI = ("entailment", "neutral", "contradiction")
Names = tuple[str, ...]


@pytest.fixture
def classifier(tmp_path: Path, tiny_bert: Path) -> Any:
    """Makes a tiny classifier with seeded random weights and these output names."""

    def make(names: Names, model_type: str = "bert") -> Path:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 128}
        depth = {"num_hidden_layers": 2, "num_attention_heads": 2}
        config = AutoConfig.for_model(model_type, **sizes, **depth, pad_token_id=0, id2label=dict(enumerate(names)))
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_config(config)
        # A random head of the usual scale and no bias gives every text the same answer.
        torch.nn.init.normal_(model.classifier.weight, std=3)
        with torch.inference_mode():
            logits = model.eval()(torch.randint(4, 30, (64, 9))).logits
        model.classifier.bias.data = -logits.median(dim=0).values
        folder = tmp_path / "-".join((model_type, *names)).replace(" ", "_")
        model.save_pretrained(folder)
        load_tokenizer(tiny_bert).save_pretrained(folder)
        return folder

    return make


def answers(folder: Path, texts: list[tuple[str, ...]]) -> list[int]:
    """The most probable output, one text at a time."""
    return logits(folder, texts).argmax(axis=1).tolist()


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
@pytest.mark.parametrize(
    ("task", "names", "meaning"),
    [
        ("glue_rte", ("CONTRADICTION", "Entailment", "neutral"), (1, 0, 1)),
        ("glue_rte", ("not_entailment", "entailment"), (1, 0)),
        ("superglue_cb", ("entailment", "neutral", "contradiction"), (0, 2, 1)),
        ("glue_mrpc", ("equivalent", "not_equivalent"), (1, 0)),
        ("glue_sst2", ("POSITIVE", "NEGATIVE"), (1, 0)),
    ],
)
def test_accuracy_of_a_head(
    classifier: Any, documents: Documents, model_type: str, task: str, names: Names, meaning: tuple[int, ...]
):
    folder = classifier(names, model_type)
    found = run(folder, "encoder", task, batch_size=6)
    rows = documents[task.partition("_")[2]]
    predicted = answers(folder, [tuple(row[field] for field in all_tasks()[task].fields) for row in rows])
    right = [float(meaning[answer] == row["label"]) for answer, row in zip(predicted, rows, strict=True)]
    assert len(set(predicted)) > 1
    assert [outcome.value for outcome in found.outcomes] == right
    commonest = max(sum(row["label"] == place for row in rows) for place in range(len(all_tasks()[task].classes)))
    assert found.chance == commonest / len(rows)
    assert (found.metric, found.protocol["labels"]) == ("acc", ", ".join(names))


def test_labels_of_the_manifest_stand_in_for_numbers(classifier: Any, documents: Documents):
    folder = classifier(("LABEL_0", "LABEL_1", "LABEL_2"))
    with pytest.raises(BenchmarkError) as caught:
        run(folder, "encoder", "glue_rte")
    assert "LABEL_0" in caught.value.message
    assert "`labels:`" in (caught.value.hint or "")
    assert run(folder, "encoder", "glue_rte", labels=("neutral", "entailment", "contradiction")).n == 40
    with pytest.raises(BenchmarkError, match="3 outputs"):
        run(folder, "encoder", "glue_rte", labels=("not_entailment", "entailment"))


def test_mnli_comes_from_the_hub(classifier: Any, monkeypatch: pytest.MonkeyPatch):
    rows = [{"premise": "the cat sat", "hypothesis": f"the {word} ran", "label": 2} for word in ("dog", "cat", "mat")]
    asked = hub(monkeypatch, {"validation_matched": rows})
    folder = classifier(NLI)
    found = run(folder, "encoder", "glue_mnli")
    expected = [float(answer == 2) for answer in answers(folder, [(row["premise"], row["hypothesis"]) for row in rows])]
    assert [outcome.value for outcome in found.outcomes] == expected
    assert asked == [("nyu-mll/glue", "mnli", "validation_matched")]

    hub(monkeypatch, None)
    with pytest.raises(BenchmarkError, match="glue_mnli.*hub"):
        run(folder, "encoder", "glue_mnli")


@pytest.mark.parametrize("order", list(itertools.permutations(NLI)))
def test_order_of_the_outputs_does_not_matter(order: Names):
    cb = all_tasks()["superglue_cb"]
    assert [NLI[place] for place in match(order, all_tasks()["glue_mnli"])] == list(order)
    assert [cb.classes[place] for place in match(order, cb)] == list(order)
    assert match(order, all_tasks()["glue_rte"]) == [int(name != "entailment") for name in order]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("glue_mnli", ("entailment", "not_entailment")),
        ("glue_mnli", (*NLI, "other")),
        ("glue_rte", ("neutral", "contradiction")),
        ("superglue_cb", ("entailment", "not_entailment")),
        ("glue_sst2", ("1 star", "2 stars", "3 stars")),
        ("glue_mrpc", NLI),
    ],
)
def test_a_head_for_something_else_is_refused(task: str, names: Names):
    with pytest.raises(BenchmarkError, match=task) as caught:
        match(names, all_tasks()[task])
    assert names[0] in caught.value.message


def test_spellings():
    assert match(("ENTAILMENT", "Non-Entailment"), all_tasks()["glue_rte"]) == [0, 1]
    assert match(("pos", "NEG"), all_tasks()["glue_sst2"]) == [1, 0]
    assert match(("not_duplicate", "paraphrase"), all_tasks()["glue_mrpc"]) == [0, 1]
    assert head_labels({"id2label": {"1": "b", "0": "a"}}, None) == ("a", "b")


@pytest.mark.parametrize("names", [None, {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "0", "1": "1"}, {"0": "a", "10": "k"}])
def test_numbers_are_not_names(names: dict[str, str] | None):
    with pytest.raises(BenchmarkError, match="does not name"):
        head_labels({"id2label": names} if names else {}, None)


def test_logits_that_are_not_finite(classifier: Any, documents: Documents, tmp_path: Path):
    folder = classifier(("negative", "positive"))
    whole = run(folder, "encoder", "glue_sst2")
    cat = load_tokenizer(folder).convert_tokens_to_ids("cat")

    def spoil_cat(name: str, tensor: torch.Tensor) -> None:
        if "word_embeddings" in name:
            tensor[cat] = torch.nan

    broken = run(changed(folder, tmp_path / "cat", spoil_cat), "encoder", "glue_sst2")
    hit = ["cat" in row["sentence"].split() for row in documents["sst2"]]
    assert broken.protocol["non_finite"] == sum(hit) > 0
    for bad, before, after in zip(hit, whole.outcomes, broken.outcomes, strict=True):
        assert after.value == (0.0 if bad else before.value)
    none = changed(folder, tmp_path / "none", lambda name, tensor: tensor.fill_(torch.nan))
    with pytest.raises(BenchmarkError, match="glue_sst2.*any of 40"):
        run(none, "encoder", "glue_sst2")
