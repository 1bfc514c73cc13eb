"""F1 over entities: which there are, what a head says, and the same from a plain loop."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, BertConfig, BertForTokenClassification

from sparsebench.benchmarks.tagging import Entity, entities
from sparsebench.errors import BenchmarkError
from sparsebench.ledger import statistics
from sparsebench.ledger.statistics import Pairs
from sparsebench.models.files.text import load_tokenizer
from tests.benchmarks.conftest import sentence
from tests.benchmarks.own_data import scored, written

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
DRAW = random.Random(4)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        # IOB1: inside from the first word on, B only between two that touch.
        ("I-PER I-PER B-PER O I-LOC", {("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)}),
        # Another kind is another entity.
        ("B-PER I-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2)}),
        ("B-PER E-PER S-LOC S-LOC", {("PER", 0, 1), ("LOC", 2, 2), ("LOC", 3, 3)}),
        ("B-PER I-PER L-PER U-LOC I-PER", {("PER", 0, 2), ("LOC", 3, 3), ("PER", 4, 4)}),
        ("E-PER I-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("PER PER O LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-date-of-birth I-date-of-birth", {("date-of-birth", 0, 1)}),
    ],
)
def test_entities(tags: str, found: set[Entity]) -> None:
    assert entities(tags.split()) == found


@pytest.fixture(scope="module")
def tagger(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random head over a tiny BERT, whose tags are of all kinds."""
    folder = tmp_path_factory.mktemp("tagger")
    config = BertConfig.from_pretrained(tiny_bert, id2label=dict(enumerate(TAGS)), num_labels=len(TAGS))
    torch.manual_seed(0)
    model = BertForTokenClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=4)
    model.save_pretrained(folder)
    load_tokenizer(tiny_bert).save_pretrained(folder)
    return folder


def said(folder: Path, words: list[str]) -> list[str]:
    """The tags that a plain loop finds, word by word: the output of each word's first token."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder).eval(), load_tokenizer(folder)
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    ids = [one for piece in pieces for one in piece]  # this tokenizer adds nothing around a text
    assert ids == tokenizer(" ".join(words))["input_ids"]
    with torch.no_grad():
        best = model(torch.tensor([ids])).logits[0].argmax(dim=-1).tolist()
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    return [TAGS[best[start]] for start in starts]


def records(folder: Path, number: int = 12) -> list[dict[str, Any]]:
    """Sentences with the tags that the model gives them."""
    drawn = [sentence(DRAW, 4, 20).split() for _ in range(number)]
    return [{"tokens": words, "tags": said(folder, words)} for words in drawn]


def test_a_model_agrees_with_itself_and_f1_counts_what_it_misses(tagger: Path, tmp_path: Path) -> None:
    data = records(tagger)
    right = [entities(one["tags"]) for one in data]
    assert sum(map(len, right)) > 10
    spaced = [one | {"tokens": [f" {word}" for word in one["tokens"]]} for one in data]
    for written_as in (data, spaced):
        found = scored(tagger, "encoder", "tags", written(tmp_path / "all.jsonl", written_as))
        assert (found.metric, found.score, found.chance, found.n) == ("entity_f1", 1.0, 0.0, 12)
        assert found.protocol["cut_words"] == 0
    # Data where half of the sentences have no entity: all that is found there is wrong.
    for one in data[::2]:
        one["tags"] = ["O"] * len(one["tokens"])
    found = scored(tagger, "encoder", "tags", written(tmp_path / "half.jsonl", data))
    true, both = sum(map(len, right[1::2])), sum(map(len, right))
    assert found.score == pytest.approx(2 * true / (true + both))


def test_words_and_tags_may_be_texts_under_other_names_and_long_sentences_are_cut(tagger: Path, tmp_path: Path) -> None:
    words = sentence(DRAW, 400, 400).split()
    (tmp_path / "ner.csv").write_text(f"words,ner\n{' '.join(words)},{' '.join(['B-PER'] * len(words))}\n")
    found = scored(tagger, "encoder", "tags", tmp_path / "ner.csv", columns=(("tokens", "words"), ("tags", "ner")))
    assert 0 < found.protocol["cut_words"] < 400
    assert found.outcomes[0].label == 400 + len(entities(said(tagger, words[: 400 - found.protocol["cut_words"]])))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": ["a", "cat"], "tags": ["O"]}, "record 1: tags is .* 2 tags"),
        ({"tokens": ["a"], "tags": [3]}, r"record 1: tags is '\[3\]'"),
        ({"tokens": ["a"], "tags": ["B-ORG"]}, "tag 'B-ORG'; the head's outputs are O, B-PER"),
        ({"tokens": ["a"], "tags": ["O"]}, "no entity in 1 documents"),
        ({"words": ["a"], "tags": ["O"]}, "no field 'tokens'|no column 'tokens'"),
    ],
)
def test_what_cannot_be_scored_is_named(record: dict[str, Any], message: str, tagger: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=message):
        scored(tagger, "encoder", "tags", written(tmp_path / "data.jsonl", [record]))


def test_a_tokenizer_without_places_and_an_encoder_without_such_a_head_are_refused(
    tagger: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path / "data.jsonl", [{"tokens": ["a"], "tags": ["B-PER"]}])
    with pytest.raises(BenchmarkError, match="a token-classification head"):
        scored(tiny_bert, "encoder", "tags", data)
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.is_fast", False)
    with pytest.raises(BenchmarkError, match="does not say where in a text a token stands"):
        scored(tagger, "encoder", "tags", data)


def test_the_comparison_divides_each_side_by_its_own_entities() -> None:
    generator = np.random.default_rng(3)
    there, found = generator.integers(0, 6, size=(2, 300)).astype(float)
    right = np.minimum(there, found) * (generator.random(300) < 0.8)
    less = right * (generator.random(300) < 0.7)
    fewer = np.maximum(found - 1, less)
    pairs = Pairs(2 * less, 2 * right, there + found, None, there + fewer)
    shown = statistics.compare("entity_f1", pairs, 0.0)
    whole = [2 * one.sum() / (there + own).sum() for one, own in ((less, fewer), (right, found))]
    assert shown.difference == pytest.approx(whole[0] - whole[1])
    assert shown.low is not None and shown.high is not None and shown.low < shown.difference < shown.high < 0
    # An independent bootstrap, document by document.
    drawn = generator.integers(300, size=(2000, 300))
    shifts = [
        2 * less[one].sum() / (there + fewer)[one].sum() - 2 * right[one].sum() / (there + found)[one].sum()
        for one in drawn
    ]
    assert [shown.low, shown.high] == pytest.approx(np.quantile(shifts, [0.025, 0.975]), abs=0.01)
    assert shown.retained == pytest.approx(whole[0] / whole[1])
