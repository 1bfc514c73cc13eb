"""A model's own head on a user's own labelled file: against a loop of stock transformers, for every family."""

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, BertConfig, GPT2Config, LlamaConfig, T5Config

from sparsebench.benchmarks.statistics import macro_f1, pearson
from sparsebench.errors import SparsebenchError, UnsupportedError
from sparsebench.ledger import statistics
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.files.text import load_tokenizer
from sparsebench.notebook import apply
from sparsebench.plan.single import SingleModel, manifest_tasks
from sparsebench.sources import Cache
from tests.benchmarks.conftest import sentence
from tests.benchmarks.own_data import scored, written

NAMES = {0: "bad", 1: "fair", 2: "good"}
_SMALL: dict[str, Any] = {"vocab_size": 128, "pad_token_id": 0, "eos_token_id": 2}
CONFIGS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "bert": ("encoder", lambda **more: BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
        **_SMALL | more,
    )),
    "llama": ("decoder", lambda **more: LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
        **_SMALL | more,
    )),
    "gpt2": ("decoder", lambda **more: GPT2Config(
        n_embd=64, n_layer=2, n_head=4, n_positions=128, **_SMALL | {"pad_token_id": None} | more,
    )),
    "t5": ("encoder-decoder", lambda **more: T5Config(
        d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0, **_SMALL | more,
    )),
}  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """Make a tiny model with a random head that gives every class to some text."""

    def make(kind: str, outputs: int = 3, **more: Any) -> tuple[Path, Any]:
        family, config = CONFIGS[kind]
        folder = tmp_path_factory.mktemp(kind)
        names = {"id2label": {number: NAMES[number] for number in range(outputs)}} if outputs > 1 else {"num_labels": 1}
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config(**names, **more)).eval()
        for weight in model.parameters():
            if weight.ndim > 1:  # the usual start gives every text the same class
                torch.nn.init.normal_(weight, std=0.4)
        model.save_pretrained(folder)
        tokenizer = load_tokenizer(tiny_bert)
        if kind == "t5":
            from tokenizers.processors import TemplateProcessing

            tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
        tokenizer.save_pretrained(folder)
        return folder, family

    return make


DRAW = random.Random(3)
TEXTS = [sentence(DRAW, 3, 30) for _ in range(40)]


def logits(folder: Path, texts: list[Any]) -> np.ndarray:
    """The head's outputs by stock transformers, one text at a time."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), load_tokenizer(folder)
    with torch.inference_mode():
        rows = [model(**tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")) for text in texts]
    return torch.cat([row.logits for row in rows]).float().numpy()


def table(path: Path, columns: list[str], rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_head_agrees_with_stock_transformers(kind: str, classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier(kind)
    chosen = logits(folder, TEXTS).argmax(axis=1)
    assert len({*chosen}) > 1
    gold = [int(number) if place % 3 else (number + 1) % 3 for place, number in enumerate(chosen)]
    data = table(tmp_path / "reviews.csv", ["text", "label"], [(t, NAMES[g]) for t, g in zip(TEXTS, gold, strict=True)])
    found = scored(folder, family, "classify", data)
    assert [outcome.value for outcome in found.outcomes] == [float(g == c) for g, c in zip(gold, chosen, strict=True)]
    assert found.metric == "acc" and found.chance == max(map(gold.count, range(3))) / 40
    graded = scored(folder, family, "classify", data, metric="macro_f1")
    assert graded.score == pytest.approx(f1_score(gold, chosen, average="macro"))
    values, labels = (np.array([getattr(one, name) for one in graded.outcomes]) for name in ("value", "label"))
    assert statistics.reproduces_score("macro_f1", graded.score, values, labels)


def test_a_configuration_may_say_minus_1_for_no_padding(classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier("llama", pad_token_id=-1)
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token, tokenizer.eos_token = None, "</s>"
    tokenizer.save_pretrained(folder)
    rows = [(text, NAMES[label]) for text, label in zip(TEXTS, logits(folder, TEXTS).argmax(axis=1), strict=True)]
    assert scored(folder, family, "classify", table(tmp_path / "reviews.csv", ["text", "label"], rows)).score == 1


def test_pairs_are_read_by_themselves_and_under_other_names(classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier("bert")
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    chosen = logits(folder, [list(pair) for pair in pairs]).argmax(axis=1)
    assert (chosen != logits(folder, TEXTS).argmax(axis=1)).any()
    renamed = {"text": "a", "text_pair": "b", "label": "y"}
    for columns in ({}, renamed):
        rows = [(*pair, int(number)) for pair, number in zip(pairs, chosen, strict=True)]
        names = [columns.get(part, part) for part in renamed]
        data = table(tmp_path / f"{names[0]}.csv", names, rows)
        assert scored(folder, family, "classify", data, columns=tuple(columns.items())).score == 1


def test_a_head_that_gives_a_number_is_correlated(classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier("bert", 1)
    numbers = logits(folder, TEXTS)[:, 0]
    gold = [float(number) + DRAW.random() for number in numbers]
    data = written(tmp_path / "stars.jsonl", [{"text": t, "label": g} for t, g in zip(TEXTS, gold, strict=True)])
    for metric, reference in (("pearson", pearsonr), ("spearman", spearmanr)):
        found = scored(folder, family, "classify", data, metric=metric)
        assert found.score == pytest.approx(reference(numbers, gold).statistic, abs=1e-5)


def test_a_manifest_s_task_knows_the_outputs_that_the_command_names(classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier("bert")
    written(tmp_path / "moods.jsonl", [{"text": "a cat", "label": "sad"}])
    manifest = tmp_path / "m.yaml"
    models = f"models: [{{name: x, source: 'path:{folder}', family: encoder}}]\n"
    manifest.write_text(
        f"version: 1\n{models}benchmarks: {{encoder: [{{task: classify, source: path:moods.jsonl}}]}}\n"
    )
    model, cache = SingleModel("m", folder, family), Cache(offline=True)
    (task,) = manifest_tasks(manifest, model, cache, ("glad", "sad", "calm"))
    assert task.own and task.own.kind == "classify"
    with pytest.raises(SparsebenchError, match="sad"):
        manifest_tasks(manifest, model, cache)


def test_a_correlation_needs_a_head_with_one_number(classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier("bert", problem_type="regression")
    data = written(tmp_path / "stars.jsonl", [{"text": text, "label": number} for number, text in enumerate(TEXTS)])
    with pytest.raises(SparsebenchError, match="3 numbers"):
        scored(folder, family, "classify", data, metric="pearson")


def test_another_padding_token_than_the_tokenizer_s_moves_no_score(classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier("llama", pad_token_id=7)
    gold = [NAMES[int(row.argmax())] for row in logits(folder, TEXTS)]
    data = written(
        tmp_path / "a.jsonl", [{"text": text, "label": name} for text, name in zip(TEXTS, gold, strict=True)]
    )
    assert scored(folder, family, "classify", data).score == 1


@pytest.mark.parametrize(
    ("record", "culprits"),
    [
        ({"text": "a cat", "label": "angry"}, "angry.*bad, fair, good"),
        ({"text": "a cat", "label": 3}, "'3'.*bad, fair, good"),
        ({"text": "a cat", "label": ""}, "record 1: label is"),
        ({"review": "a cat", "label": 1}, "no column 'text'"),
    ],
)
def test_labels_that_fit_no_output_are_named(record: Any, culprits: str, classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier("bert")
    with pytest.raises(SparsebenchError, match=culprits):
        scored(folder, family, "classify", written(tmp_path / "data.jsonl", [record]))


def test_models_without_a_classification_head_are_refused(tiny_bert: Path, tiny_llama: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", [{"text": "a cat", "label": 0}])
    for folder, family in ((tiny_bert, "encoder"), (tiny_llama, "decoder")):
        with pytest.raises(SparsebenchError, match="sequence-classification head"):
            scored(folder, family, "classify", data)


def test_sentence_vectors_come_without_the_head(classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier("bert")
    records = [{"text": text, "label": place % 2} for place, text in enumerate(TEXTS * 2)]
    assert 0 <= scored(folder, family, "probe", written(tmp_path / "data.jsonl", records)).score <= 1


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "step",
    [
        {"prune": "magnitude", "sparsity": 0.5},
        {"prune": "wanda", "sparsity": 0.5},
        {"quantize": "int8"},
        {"shrink": "taylor", "keep": 0.5},
        {"recover": "distill", "tokens": 512},
    ],
    ids=lambda step: " ".join(map(str, step.values())),
)
def test_steps_keep_the_head_bit_for_bit(kind: str, step: Any, classifier: Any, tmp_path: Path) -> None:
    folder, family = classifier(kind)
    text = written(tmp_path / "text.jsonl", [{"text": f"{text} {other}"} for text in TEXTS for other in TEXTS[:4]])

    def make() -> Path:
        calibration = {"source": f"path:{text}", "samples": 8, "length": 16}
        return apply(SingleModel(kind, folder, family), step, tmp_path / "out", calibration=calibration).folder

    if kind == "t5" and ("recover" in step or "shrink" in step):
        with pytest.raises(UnsupportedError, match="head for classes"):
            make()
        return
    made = make()
    before, after = Checkpoint(folder), open_checkpoint(made)
    heads = [name for name in before.tensors if "classif" in name or name.startswith("score")]
    assert heads and all(torch.equal(before.load(name), after.load(name)) for name in heads)
    data = written(tmp_path / "data.jsonl", [{"text": text, "label": "good"} for text in TEXTS])
    assert scored(made, family, "classify", data).n == 40


def test_resampled_metrics_follow_scikit_learn_and_scipy() -> None:
    generator = np.random.default_rng(0)
    chosen, gold = generator.integers(-1, 4, 30).astype(float), generator.integers(0, 4, 30).astype(float)
    draws = generator.integers(0, 30, (5, 30))
    weights = np.stack([np.bincount(draw, minlength=30) for draw in draws]).astype(float)
    for row, draw in zip(macro_f1(chosen, gold, weights), draws, strict=True):
        classes = [*{*chosen[draw], *gold[draw]} - {-1.0}]
        assert row == pytest.approx(f1_score(gold[draw], chosen[draw], labels=classes, average="macro"))
    values = generator.normal(size=30)
    for row, draw in zip(pearson(values, gold, weights), draws, strict=True):
        assert row == pytest.approx(pearsonr(values[draw], gold[draw]).statistic)
    assert pearson(np.full(30, 0.1), gold, weights).tolist() == [0.0] * 5
