"""Sentence encoders: pairs, probes, retrieval and pooling, against a plain loop."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from transformers import BertModel

from sparsebench.benchmarks.contract import sampled
from sparsebench.benchmarks.pooling import MODES, Pooling, read_pooling
from sparsebench.errors import BenchmarkError, ModelError, UnsupportedError
from sparsebench.models.files.text import load_tokenizer
from tests.benchmarks.conftest import Documents, changed, hub, run, sentence
from tests.benchmarks.own_data import scored, written


def raw_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """Vectors by mean pooling, straight from transformers."""
    model, tokenizer = BertModel.from_pretrained(folder, dtype=torch.float32).eval(), load_tokenizer(folder)
    with torch.inference_mode():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in texts]
    return torch.stack(means).numpy()


def one_by_one(folder: Path, texts: list[str]) -> np.ndarray:
    """Those vectors with a length of one."""
    vectors = raw_vectors(folder, texts)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def similarities(folder: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """The cosine of each pair of sentences."""
    first, second = (one_by_one(folder, [row[field] for row in rows]) for field in ("sentence1", "sentence2"))
    return (first * second).sum(axis=1)


def test_pairs_are_ranked_by_cosine_similarity(tiny_bert: Path, documents: Documents):
    steps: list[tuple[int, int]] = []
    found = run(tiny_bert, "encoder", "mrpc_pair", batch_size=7, progress=lambda *done: steps.append(done))
    rows = documents["mrpc"]
    similarity, labels = similarities(tiny_bert, rows), [row["label"] for row in rows]
    assert [outcome.value for outcome in found.outcomes] == pytest.approx(similarity.tolist(), abs=1e-5)
    assert [outcome.label for outcome in found.outcomes] == labels
    assert found.score == pytest.approx(average_precision_score(labels, similarity), abs=1e-6)
    assert found.chance == pytest.approx(sum(labels) / len(labels))
    assert 0 < found.stderr < 0.3
    assert (found.n, found.limited) == (len(rows), False)
    distinct = len({row[field] for row in rows for field in ("sentence1", "sentence2")})
    assert steps[-1] == (distinct, distinct)
    some = run(tiny_bert, "encoder", "mrpc_pair", limit=10)
    assert (some.n, some.limited) == (10, True)
    assert [outcome.doc_id for outcome in some.outcomes] == [str(place) for place in sampled(len(rows), 10)]
    with pytest.raises(BenchmarkError, match="raise `limit`"):
        run(tiny_bert, "encoder", "mrpc_pair", limit=1)


def test_similarity_is_correlated_with_what_people_say(
    tiny_bert: Path, documents: Documents, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    draw = random.Random(1)
    rows = [{**row, "score": round(draw.uniform(0, 5), 1)} for row in documents["mrpc"]]
    asked = hub(monkeypatch, {"test": rows})
    found = run(tiny_bert, "encoder", "stsb_sts")
    assert asked == [("mteb/stsbenchmark-sts", "default", "test")]
    ours, gold = [outcome.value for outcome in found.outcomes], [row["score"] for row in rows]
    assert ours == pytest.approx(similarities(tiny_bert, rows).tolist(), abs=1e-5)
    assert [outcome.label for outcome in found.outcomes] == gold
    assert found.score == pytest.approx(spearmanr(ours, gold).statistic, abs=1e-9)
    assert (found.metric, found.chance, found.n, found.limited) == ("spearman", 0.0, 40, False)
    assert 0 < found.stderr < 0.4
    zero = collapsed(tiny_bert, tmp_path / "zero")
    assert run(zero, "encoder", "stsb_sts", batch_size=100).score == pytest.approx(0, abs=0.3)


def test_an_own_file_stands_for_a_tasks_data(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    rows = [(f"the {word} ran", place) for place, word in enumerate("abc")]
    pairs = [{"sentence1": "the cat sat", "sentence2": text, "score": score} for text, score in rows]
    hub(monkeypatch, {"test": pairs})
    lines = [f"the cat sat,{text},{score}" for text, score in rows]
    (tmp_path / "mine.csv").write_text("\n".join(["sentence1,sentence2,score", *lines]))
    source = f"path:{tmp_path / 'mine.csv'}"
    theirs, mine = run(tiny_bert, "encoder", "stsb_sts"), run(tiny_bert, "encoder", "stsb_sts", data=source)
    assert (mine.score, mine.outcomes) == (theirs.score, theirs.outcomes)
    assert (mine.protocol["data"], mine.protocol["split"]) == (source, "")
    with pytest.raises(BenchmarkError, match=r"mrpc_pair.*mine\.csv has no column 'label'"):
        run(tiny_bert, "encoder", "mrpc_pair", data=source)
    with pytest.raises(BenchmarkError, match="sciq_retrieval takes no `data`"):
        run(tiny_bert, "encoder", "sciq_retrieval", data=source)


def test_a_probe_is_scored_on_the_rest(tiny_bert: Path, tmp_path: Path):
    draw = random.Random(7)
    data = [{"text": sentence(draw), "label": draw.choice(["bad", "good"])} for _ in range(100)]
    path = written(tmp_path / "mine.jsonl", data)
    found = scored(tiny_bert, "encoder", "probe", path)
    rows = [data[place] for place in np.random.RandomState(42).permutation(100)]
    vectors = raw_vectors(tiny_bert, [row["text"] for row in rows])
    labels = np.array([row["label"] == "good" for row in rows], dtype=int)
    shuffler, order, right = np.random.RandomState(42), np.arange(50), np.zeros(50)
    for _ in range(10):
        shuffler.shuffle(order)
        chosen: list[int] = []
        for place in order:
            if sum(labels[other] == labels[place] for other in chosen) < 16:
                chosen.append(place)
        chosen.sort(key=lambda place: labels[place])
        model = LogisticRegression(random_state=42, max_iter=100).fit(vectors[chosen], labels[chosen])
        right += model.predict(vectors[50:]) == labels[50:]
    assert [outcome.value for outcome in found.outcomes] == pytest.approx((right / 10).tolist(), abs=1e-9)
    assert found.score == pytest.approx(right.mean() / 10, abs=1e-9)
    assert (found.metric, found.chance, found.n, found.limited) == ("acc", 0.5, 50, False)
    assert found.protocol["experiments"] == 10
    assert "50 documents to train on, 50 to score" in str(found.protocol["split"])
    some = scored(tiny_bert, "encoder", "probe", path, limit=7)
    assert some.outcomes == tuple(found.outcomes[p] for p in sampled(50, 7))


@pytest.mark.parametrize("limit", [None, 6])
def test_a_question_finds_its_passage(tiny_bert: Path, documents: Documents, limit: int | None):
    found = run(tiny_bert, "encoder", "sciq_retrieval", limit=limit, batch_size=5)
    usable = [(place, row) for place, row in enumerate(documents["sciq"]) if row["support"]]
    passages = sorted({row["support"] for _, row in usable})
    assert len(passages) == len(usable) - 1, "two questions share a passage"
    nearest = one_by_one(tiny_bert, passages)
    expected = {}
    for place, row in (usable[p] for p in sampled(len(usable), limit)):
        (question,) = one_by_one(tiny_bert, [row["question"]])
        expected[str(place)] = float(passages[int(np.argmax(nearest @ question))] == row["support"])
    assert {outcome.doc_id: outcome.value for outcome in found.outcomes} == expected
    assert found.score == pytest.approx(sum(expected.values()) / len(expected))
    assert found.chance == 1 / len(passages)
    assert (found.n, found.limited) == (limit or len(usable), limit is not None)
    assert found.protocol["questions_without_passage"] == len(documents["sciq"]) - len(usable)


def collapsed(folder: Path, out: Path) -> Path:
    """A copy without embeddings and their norm, which encodes every text alike."""
    return changed(folder, out, lambda name, tensor: tensor.zero_() if name.startswith("embeddings.") else None)


def test_a_collapsed_encoder_is_at_chance_and_infinite_vectors_have_no_rank(
    tiny_bert: Path, documents: Documents, tmp_path: Path
):
    zero = collapsed(tiny_bert, tmp_path / "zero")
    infinite = changed(tiny_bert, tmp_path / "nan", lambda name, tensor: tensor.fill_(float("nan")))
    pairs = run(zero, "encoder", "mrpc_pair", batch_size=100)
    assert pairs.chance is not None
    assert pairs.score == pytest.approx(pairs.chance, abs=0.15)
    assert run(zero, "encoder", "sciq_retrieval", batch_size=100).score < 0.1
    for task in ("mrpc_pair", "sciq_retrieval"):
        with pytest.raises(BenchmarkError, match=f"{task}.*not finite"):
            run(infinite, "encoder", task)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_ignores_padding(mode: str, side: str):
    torch.manual_seed(0)
    hidden, lengths = torch.randn(3, 6, 4), [6, 2, 1]
    mask = torch.zeros(3, 6, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(0, length) if side == "right" else slice(6 - length, 6)] = 1
    pooled = Pooling(mode).apply(hidden, mask)
    for row, length in enumerate(lengths):
        states = hidden[row, :length] if side == "right" else hidden[row, 6 - length :]
        slow = {
            "cls": states[0],
            "mean": states.sum(dim=0) / length,
            "max": states.max(dim=0).values,
            "mean_sqrt_len": states.sum(dim=0) / length**0.5,
        }[mode]
        torch.testing.assert_close(pooled[row], slow)
    unit = Pooling(mode, normalize=True).apply(hidden, mask)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))


def sentence_transformer(folder: Path, pooling: dict[str, Any], *kinds: str) -> Path:
    """The files that sentence-transformers leaves."""
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for place, kind in enumerate(kinds or ("Pooling", "Normalize"), 1):
        modules.append({"path": f"{place}_{kind}", "type": f"sentence_transformers.models.{kind}"})
        (folder / f"{place}_{kind}").mkdir(exist_ok=True, parents=True)
    numbered = [{"idx": place, "name": str(place), **module} for place, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(numbered))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_pooling_is_read_from_the_checkpoint(tiny_bert: Path, documents: Documents, tmp_path: Path):
    assert read_pooling(tmp_path) == Pooling("mean", normalize=False)
    cls = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    folder = sentence_transformer(Path(shutil.copytree(tiny_bert, tmp_path / "model")), cls)
    mean, first = (run(one, "encoder", "mrpc_pair") for one in (tiny_bert, folder))
    assert (mean.protocol["pooling"], first.protocol["pooling"]) == ("mean", "cls")
    assert [outcome.value for outcome in mean.outcomes] != [outcome.value for outcome in first.outcomes]
    for kind in ("xlm-roberta", "bert"):  # the newest name counts
        length = len(kind)
        (folder / f"sentence_{kind}_config.json").write_text(
            json.dumps({"max_seq_length": length, "do_lower_case": True})
        )
        assert read_pooling(folder) == Pooling("cls", normalize=True, max_length=length, lower_case=True)
    assert read_pooling(sentence_transformer(folder, {"pooling_mode": "max"}, "Pooling")).mode == "max"
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedError, match="prompt"):
        read_pooling(folder)


@pytest.mark.parametrize(
    ("pooling", "kinds", "culprit"),
    [
        ({"pooling_mode_lasttoken": True}, ("Pooling",), "lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, ("Pooling",), "cls \\+ mean"),
        ({"pooling_mode": None}, ("Pooling",), "None"),
        ({"pooling_mode": [3, "cls"]}, ("Pooling",), "3 \\+ cls"),
        ({"pooling_mode_mean_tokens": True}, ("Pooling", "Normalize", "Dense"), "Dense layer behind Normalize"),
        ({"pooling_mode_mean_tokens": True}, ("Pooling", "CNN"), "CNN"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path: Path, pooling: dict[str, Any], kinds: tuple[str, ...], culprit: str):
    with pytest.raises(UnsupportedError, match=culprit):
        read_pooling(sentence_transformer(tmp_path / "model", pooling, *kinds))


@pytest.mark.parametrize("length", ["128", 0, 1.5, True])
def test_a_greatest_length_that_is_no_number_of_tokens_is_named(length: object, tmp_path: Path):
    folder = sentence_transformer(tmp_path / "model", {"pooling_mode": "cls"}, "Pooling")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(ModelError, match=f"sentence_bert_config.json: `max_seq_length` is {length!r}"):
        read_pooling(folder)


def test_layers_behind_the_pooling_are_run(tmp_path: Path):
    folder = sentence_transformer(tmp_path / "model", {"pooling_mode_cls_token": True}, "Pooling", "Dense", "Normalize")
    layer = torch.nn.Linear(4, 6)
    tensors = {"linear.weight": layer.weight.detach(), "linear.bias": layer.bias.detach()}
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    hidden, mask = torch.randn(3, 2, 4), torch.ones(3, 2)

    def read(activation: str, width: int = 4) -> Pooling:
        sizes = {"in_features": width, "out_features": 6, "activation_function": activation}
        (folder / "2_Dense" / "config.json").write_text(json.dumps(sizes))
        return read_pooling(folder)

    for activation, outputs in (
        ("torch.nn.modules.activation.Tanh", torch.tanh(layer(hidden[:, 0]))),
        ("Identity", layer(hidden[:, 0])),
    ):
        expected = torch.nn.functional.normalize(outputs).detach()
        torch.testing.assert_close(read(activation).apply(hidden, mask), expected)
    with pytest.raises(UnsupportedError, match="Softplus"):
        read("Softplus")
    with pytest.raises(ModelError, match=r"2_Dense.*\(6, 5\)"):
        read("Identity", 5)


@pytest.mark.parametrize(
    ("task", "pairs", "culprit"),
    [
        ("mrpc_pair", [("a", "b", 1), ("a", "c", 0), ("a", "d", 4)], "record 3: label is '4', not 0 or 1"),
        ("stsb_sts", [("a", "b", 1), ("a", None, 0)], "record 2: sentence2 is '', not a value"),
        ("stsb_sts", [("a", "b", 1), ("a", "c", None)], "record 2: score is '', not a value"),
        ("stsb_sts", [("a", "b", 1), ("a", "c", 1)], "all have score 1\n  → choose data"),
        *(
            ("stsb_sts", [("a", "b", 1), ("a", "c", value)], "record 2: score is .*not a number")
            for value in ("high", [1], 10**400)
        ),
    ],
)
def test_what_is_no_pair_of_a_task_is_named(
    task: str, pairs: list[Any], culprit: str, tiny_bert: Path, tmp_path: Path
) -> None:
    label = "label" if task == "mrpc_pair" else "score"
    rows = [{"sentence1": first, "sentence2": second, label: gold} for first, second, gold in pairs]
    with pytest.raises(BenchmarkError, match=culprit):
        run(tiny_bert, "encoder", task, data=f"path:{written(tmp_path / 'pairs.jsonl', rows)}")


@pytest.mark.parametrize("text", ['{"0": 1}', '[{"path": ""}]', "[3]", "3"])
def test_a_list_of_modules_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match="modules.json"):
        read_pooling(tmp_path)
