"""Taylor's score on labelled documents, as TextPruner has it, against one document at a time and autograd."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sparsebench.errors import ModelError, SourceError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.labels import class_numbers, head_outputs
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.axes import shape_of
from sparsebench.steps.contract import Context, StepReport
from sparsebench.steps.registry import single
from sparsebench.steps.shrink import labelled, scores
from tests.making import attempt, make
from tests.models.replaying import written
from tests.steps.shrink.making import taylor_sums

NAMES = {"0": "calm", "1": "glad", "2": "sad"}
WORDS, FIRST = [f"w{number}" for number in range(80)], 4
"""Words, and the number that the first has as a token, behind special ones."""


def classifier(kind: str, folder: Path) -> tuple[Path, Any]:
    """A small model with a head of three classes, and a tokenizer."""
    head = {"bert": "Bert", "roberta": "Roberta", "llama": "Llama"}[kind]
    pad = -1 if kind == "llama" else 0  # as old ones of Llama say that there is none
    more = {"architectures": [f"{head}ForSequenceClassification"], "id2label": NAMES, "pad_token_id": pad}
    out, family = written(kind, folder, **more)
    names = {name: number for number, name in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]").save_pretrained(out)
    return out, family


def documents(path: Path, label: str = "label") -> Path:
    drawn = random.Random(0)
    texts = [" ".join(drawn.choices(WORDS, k=drawn.randint(8, 20))) for _ in range(40)]
    lines = [{"text": text, label: [*NAMES.values()][number % 3]} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def fetched(source: str) -> Path:
    return Path(source.removeprefix("path:"))


def shrunk(folder: Path, out: Path, **settings: Any) -> StepReport:
    step = single("shrink", "taylor", labels="task", **settings)
    report: StepReport = make(folder, "encoder", {step: out}, fetch_file=fetched)[step]
    return report


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_scores_are_those_of_single_documents_and_the_same_elements_stay(kind: str, tmp_path: Path) -> None:
    folder, family = classifier(kind, tmp_path / "model")
    source = f"path:{documents(tmp_path / 'train.jsonl')}"
    out = tmp_path / "out"
    result = shrunk(folder, out, source=source, keep=0.5, of="both", uneven=True)
    assert "labels of" in result.note and "train.jsonl" in result.note and result.calibration_tokens > 0

    step = single("shrink", "taylor", labels="task", source=source, keep=0.5)
    context = Context("encoder", 0, fetch_file=fetched)
    read = labelled.read_documents(folder, step, context)
    lines = [json.loads(line) for line in Path(source.removeprefix("path:")).read_text().splitlines()]
    classes = {line["text"]: [*NAMES.values()].index(line["label"]) for line in lines}
    model = load_model(folder, family)
    model.requires_grad_(True)
    axes = shape_of(Checkpoint(folder), family).axes
    expected = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    ids = read.text.batch.input_ids
    size = max(1, scores.TOKENS // ids.shape[1])
    assert 1 < size < len(ids), "more than one batch, of more than one document"
    for start in range(0, len(ids), size):
        model.zero_grad()
        batch = range(start, min(start + size, len(ids)))
        for place in batch:
            own = ids[place][read.text.batch.attention_mask[place]]
            said = " ".join(WORDS[number - FIRST] for number in own.tolist() if number >= FIRST)
            wanted = classes[said]
            assert int(read.classes[place]) == wanted
            loss = torch.nn.functional.cross_entropy(model(input_ids=own[None]).logits, torch.tensor([wanted]))
            (loss / len(batch)).backward()
        for axis in axes:
            expected[axis] += taylor_sums(model, axis)
    left = shape_of(Checkpoint(out), family).axes
    for axis in axes:
        every = torch.cat([expected[one] for one in axes if one.kind == axis.kind])
        threshold = every.sort(descending=True).values[sum(one.units for one in left if one.kind == axis.kind) - 1]
        stay = [unit for unit in range(axis.units) if expected[axis][unit] >= threshold]
        (cut,) = axis.outputs
        old, new = Checkpoint(folder).load(cut.tensor), Checkpoint(out).load(cut.tensor)
        columns = torch.tensor(stay or [int(expected[axis].argmax())])
        columns = (columns[:, None] * cut.size + torch.arange(cut.size)).flatten()
        assert torch.equal(new, old[:, columns]), (axis.kind, axis.layers)


@pytest.mark.parametrize("iterations", [1, 2])
def test_even_widths_and_cuts_in_turn_are_made_of_labels_too(iterations: int, tmp_path: Path) -> None:
    folder, family = classifier("bert", tmp_path / "model")
    source = f"path:{documents(tmp_path / 'train.jsonl', 'mood')}"
    asked: dict[str, Any] = {"source": source, "label": "mood", "documents": 5}
    result = shrunk(folder, tmp_path / "out", **asked, neurons=24, iterations=iterations)
    assert "labels of 5 documents" in result.note
    assert load_model(tmp_path / "out", family).config.intermediate_size == 24
    told = json.loads((tmp_path / "out" / "sparsebench.json").read_text())
    assert told["labels"] == "task" and told["calibration_sha256"] == result.calibration_sha256


@pytest.mark.parametrize(
    ("lines", "error", "what"),
    [
        ([{"text": "w1 w2", "label": "angry"}], ModelError, "'angry' is no output of the head"),
        ([{"text": "w1 w2", "label": 3}], ModelError, "'3' is no output"),
        ([{"text": "w1 w2", "label": 1.5}], SourceError, "a float as its 'label'"),
        ([{"text": "w1 w2"}], SourceError, "no field 'label'"),
        ([{"text": "", "label": 1}], SourceError, "no text with a label"),
        ("w1 w2", SourceError, "no field 'label'"),
    ],
)
def test_unlabelled_documents_are_refused(lines: Any, error: type[Exception], what: str, tmp_path: Path) -> None:
    folder, _ = classifier("bert", tmp_path / "model")
    plain = isinstance(lines, str)
    path = tmp_path / ("notes.txt" if plain else "train.jsonl")
    path.write_text(lines if plain else "".join(json.dumps(line) + "\n" for line in lines))
    good = f"path:{documents(tmp_path / 'good.jsonl')}"
    steps = [single("shrink", "taylor", neurons=24, labels="task", source=source) for source in (f"path:{path}", good)]
    targets = {step: tmp_path / f"out{number}" for number, step in enumerate(steps)}
    found = attempt(folder, "encoder", targets, fetch_file=fetched)
    wrong, neighbour = (found[step] for step in steps)
    assert isinstance(wrong, error) and what in str(wrong) and not targets[steps[0]].exists()
    assert isinstance(neighbour, StepReport) and load_model(targets[steps[1]], "encoder").config.intermediate_size == 24


def test_a_model_without_a_head_is_refused_by_name(tmp_path: Path) -> None:
    folder, _ = written("bert", tmp_path / "model")
    with pytest.raises(UnsupportedError, match="classification head") as caught:
        shrunk(folder, tmp_path / "out", source=f"path:{documents(tmp_path / 'train.jsonl')}", neurons=24)
    assert caught.value.hint


def test_what_labels_mean() -> None:
    assert class_numbers([*NAMES.values()], ["Sad", "0", "glad "]) == [2, 0, 1]
    assert class_numbers(["LABEL_0", "LABEL_1"], ["1", "label_0"]) == [1, 0]
    with pytest.raises(ModelError, match="'4' is no output"):
        class_numbers([f"{stars} stars" for stars in range(1, 6)], ["5 stars", "4"])
    assert not {"source", "label", "documents", "field"} & set(single("shrink", "taylor", keep=0.5).settings.record())


@pytest.mark.parametrize("config", [{"id2label": {"first": "glad"}}, {"id2label": ["glad"]}, {"num_labels": "two"}])
def test_labels_of_a_config_that_have_no_numbers_are_named(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(config))):
        class_numbers(head_outputs(config), ["glad"])
