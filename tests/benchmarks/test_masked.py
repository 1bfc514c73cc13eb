"""Masked language models against one token masked at a time, one text at a time."""

import itertools
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from sparsebench.benchmarks import TaskSpec
from sparsebench.benchmarks.contract import sampled
from sparsebench.benchmarks.masked import MaskedScorer
from sparsebench.benchmarks.pll import PllScorer, PllTokenizer
from sparsebench.benchmarks.pseudo_perplexity import windows
from sparsebench.errors import BenchmarkError, ModelError, UnsupportedError
from sparsebench.models.files.families import MODEL_TYPES, has_masked_lm, transformers_config
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from tests.benchmarks.conftest import Documents, changed, run, score_all, sentence, serve_file
from tests.benchmarks.masked_models import Slow, save
from tests.models.model_zoo import small
from tests.steps.trim.tiny import bert, step_of

ENCODERS = sorted(name for name, family in MODEL_TYPES.items() if family == "encoder")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny masked language model of either kind."""
    return save(tmp_path_factory.mktemp("masked") / request.param, request.param)


@pytest.fixture(scope="module")
def slow(folder: Path) -> Slow:
    return Slow(folder)


def reader(folder: Path) -> Any:
    return PllTokenizer(load_tokenizer(folder), json.loads((folder / "config.json").read_text()))


def scorer(folder: Path, rows: int | None = None) -> PllScorer:
    return PllScorer(load_model(folder, "encoder", kind=AutoModelForMaskedLM), load_tokenizer(folder), rows)


@pytest.mark.parametrize("rows", [None, 1, 7])
def test_likelihoods_are_those_of_one_mask_at_a_time(folder: Path, slow: Slow, rows: int | None):
    draw, read, several = random.Random(3), reader(folder), 0
    pairs = [("" if place % 5 == 0 else sentence(draw), f" {sentence(draw, 1, 6)}") for place in range(12)]
    found = scorer(folder, rows).score([read.continuation(*pair) for pair in pairs])
    for (context, continuation), answers in zip(pairs, found, strict=True):
        text = continuation if context else continuation.lstrip()
        expected = slow.continuation(context, text)
        assert [likelihood for likelihood, _ in answers] == pytest.approx(expected, abs=2e-5)
        several += sum(expected) != pytest.approx(sum(slow.continuation(context, text, within_words=False)), abs=1e-3)
    assert several > 6, "words of several pieces make the correction count"


def test_what_is_masked_with_a_token(folder: Path):
    text = reader(folder).continuation("", "the house's tree,  a mat")
    pieces = load_tokenizer(folder).convert_ids_to_tokens(list(text.ids))
    joined: list[str] = []
    place = text.begin
    while place < text.end:
        masked = text.masked_positions(place)
        assert [text.masked_positions(p).stop for p in masked] == [masked.stop] * len(masked)
        joined.append("".join(pieces[p] for p in masked).replace("##", "").replace("Ġ", ""))
        place = masked.stop
    apostrophe = ["'", "s"] if folder.name == "bert" else ["'s"]
    assert [word for word in joined if word] == ["the", "house", *apostrophe, "tree", ",", "a", "mat"]


def test_a_context_is_cut_at_its_beginning(folder: Path, slow: Slow):
    read, context = reader(folder), " ".join(["the cat sat on a house"] * 20)
    text = read.continuation(context, " big tree")
    assert len(text.ids) == read.longest == 64
    whole = slow.tokenizer(context + " big tree")["input_ids"]
    assert text.cut_tokens == len(whole) - 64
    assert list(text.ids[1:-1]) == whole[1:-1][text.cut_tokens :]
    (answers,) = scorer(folder).score([text])
    expected = slow.log_likelihoods(list(text.ids), list(range(text.begin, 63)))
    assert [likelihood for likelihood, _ in answers] == pytest.approx(expected, abs=2e-5)
    for context_, answer, culprit in (("a", f" {context}", "more than 62 tokens"), ("a cat", "", "has no token")):
        with pytest.raises(BenchmarkError, match=culprit):
            read.continuation(context_, answer)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_the_head_sees_chosen_places_of_every_architecture(model_type: str):
    torch.manual_seed(0)
    try:
        model = AutoModelForMaskedLM.from_config(transformers_config(small(model_type, initializer_range=0.3)))
    except ValueError:
        pytest.skip(f"transformers has no masked {model_type}")
    ids = torch.randint(3, 90, (5, 9))
    seen, places = torch.ones_like(ids), torch.tensor([0, 8, 3, 3, 5])
    seen[1, 6:] = seen[4, 7:] = 0
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=seen).logits[torch.arange(5), places]
    torch.testing.assert_close(PllScorer(model, None)._logits(ids, seen, places), expected, atol=1e-5, rtol=1e-4)
    assert float(expected.std()) > 1e-3


def test_multiple_choice_tasks_of_lm_eval(folder: Path, slow: Slow, documents: Documents):
    found = run(folder, "encoder", "piqa")
    for outcome, row in zip(found.outcomes, documents["piqa"], strict=True):
        sums = [
            math.fsum(slow.continuation(f"Question: {row['goal']}\nAnswer:", f" {row[name]}"))
            for name in ("sol1", "sol2")
        ]
        assert outcome.value == float(sums.index(max(sums)) == row["label"])
    assert (found.metric, found.chance, found.n) == ("acc", 0.5, 24)
    assert 0 < found.score < 1
    assert found.protocol["likelihood"] == "pseudo, word-l2r"
    assert found.protocol["prefix_sharing"] == "off: a masked language model"
    assert (found.protocol["cut_inputs"], found.protocol["softmax_dtype"]) == (0, "float32")
    assert found.protocol["batch_size"] == "1024 tokens"
    assert run(folder, "encoder", "piqa", limit=2, batch_size=3).protocol["batch_size"] == 3


def test_what_a_masked_model_cannot_do(folder: Path):
    masked = MaskedScorer(load_model(folder, "encoder", kind=AutoModelForMaskedLM), load_tokenizer(folder), None)
    with pytest.raises(UnsupportedError, match="generates no text"):
        masked.generate_until([])
    with pytest.raises(UnsupportedError, match="no perplexity") as caught:
        masked.loglikelihood_rolling([])
    assert "pseudo_perplexity" in (caught.value.hint or "")


@pytest.fixture
def passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Passages in place of CoQA's."""
    draw = random.Random(2)
    made = [sentence(draw, 20, 60) for _ in range(6)]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps({"doc": {"story": story}}) + "\n" for story in [*made, made[0]]))
    serve_file(monkeypatch, file)
    return made


def test_pseudo_perplexity(folder: Path, slow: Slow, passages: list[str]):
    found = run(folder, "encoder", "pseudo_perplexity", limit=3)
    text = "\n\n".join(passages)
    told = slow.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, ends, total, count, read = told["input_ids"], [0, *(end for _, end in told["offset_mapping"])], 0.0, 0, 0
    sizes = [int(outcome.label or 0) for outcome in run(folder, "encoder", "pseudo_perplexity").outcomes]
    assert [int(outcome.doc_id) for outcome in found.outcomes] == sampled(len(sizes), 3)
    for outcome in found.outcomes:
        size, begin = int(outcome.label or 0), sum(sizes[: int(outcome.doc_id)])
        window = [slow.tokenizer.cls_token_id, *ids[begin : begin + size], slow.tokenizer.sep_token_id]
        assert size <= 62
        expected = -math.fsum(slow.log_likelihoods(window, list(range(1, size + 1))))
        assert outcome.value == pytest.approx(expected, rel=1e-5)
        total, count = total + expected, count + size
        read += len(text[ends[begin] : ends[begin + size]].encode())
    assert found.score == pytest.approx(math.exp(total / count), rel=1e-5)
    assert (found.metric, found.chance, found.n, found.limited) == ("pseudo_perplexity", None, 3, True)
    assert (found.protocol["window"], found.protocol["scored_tokens"], found.protocol["passages"]) == (64, count, 6)
    assert found.stderr > 0
    assert found.protocol["scored_bytes"] == read
    assert found.protocol["bits_per_byte"] == pytest.approx(total / math.log(2) / read, rel=1e-5)


def test_a_trimmed_model_is_compared_on_windows_of_the_same_tokens(passages: list[str], tmp_path: Path):
    step_of(
        "trim", "corpus", bert(tmp_path / "dense"), tmp_path / "own", "encoder", source="path:any", field="doc.story"
    )
    dense, own = (run(tmp_path / name, "encoder", "pseudo_perplexity", limit=3) for name in ("dense", "own"))
    assert [one.doc_hash for one in dense.outcomes] == [one.doc_hash for one in own.outcomes]
    assert own.score < dense.score


def test_windows_hold_whole_words_and_all_of_the_text(folder: Path):
    read = reader(folder)
    text = "the house sat on a tree " * 30 + "x" * 90 + " a small house"
    ids, words, _ = read.tokens(text)
    found = windows(read, text, 32)
    assert [token for window in found for token in window.ids[1:-1]] == ids
    assert max(len(window.ids) for window in found) <= 32
    numbers = [window.words[1:-1] for window in found]
    long = max(set(words), key=words.count)
    for one, other in itertools.pairwise(numbers):
        assert one[-1] != other[0] or one[-1] == long
    with pytest.raises(BenchmarkError, match="fill no window"):
        windows(read, "", 32)


def test_a_model_that_knows_nothing_has_its_vocabulary(folder: Path, passages: list[str], tmp_path: Path):
    flat = changed(folder, tmp_path / "flat", lambda name, tensor: tensor.zero_())
    size = json.loads((flat / "config.json").read_text())["vocab_size"]
    assert run(flat, "encoder", "pseudo_perplexity", limit=2).score == pytest.approx(size, rel=1e-5)
    broken = changed(folder, tmp_path / "nan", lambda name, tensor: tensor.fill_(math.nan))
    with pytest.raises(BenchmarkError, match=r"pseudo_perplexity.*window \d+ of \d+ is not finite"):
        run(broken, "encoder", "pseudo_perplexity", limit=2)


def test_the_encoder_under_the_head_embeds_as_before(folder: Path, documents: Documents):
    alone = run(folder, "encoder", "mrpc_pair")
    first, pairs = score_all(folder, "encoder", [TaskSpec(name, limit=10) for name in ("piqa", "mrpc_pair")])
    assert (first.metric, pairs.metric) == ("acc", "ap")
    before = [alone.outcomes[place].value for place in sampled(40, 10)]
    assert [outcome.value for outcome in pairs.outcomes] == pytest.approx(before, abs=1e-6)


def test_a_head_that_the_files_lack(folder: Path, documents: Documents, tmp_path: Path):
    headless = Path(shutil.copytree(folder, tmp_path / "headless"))
    tensors = load_file(headless / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("cls.", "lm_head."))}
    assert len(kept) < len(tensors)
    save_file(kept, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="missing"):
        run(headless, "encoder", "piqa")
    assert run(headless, "encoder", "mrpc_pair").n == 40


def test_a_task_for_another_head_is_refused(tiny_bert: Path, folder: Path, documents: Documents):
    for task in ("piqa", "pseudo_perplexity", "blimp"):
        with pytest.raises(BenchmarkError, match=f"{task} needs a masked-language-model head") as caught:
            run(tiny_bert, "encoder", task)
        assert "mrpc_pair" in (caught.value.hint or "") and "piqa" not in (caught.value.hint or "")
    with pytest.raises(BenchmarkError, match="glue_rte needs a sequence-classification head") as caught:
        run(folder, "encoder", "glue_rte")
    assert "piqa" in (caught.value.hint or "") and "stsb_sts" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("model_type", "head", "has"),
    [
        ("bert", "BertForMaskedLM", True),
        ("bert", "BertForPreTraining", True),
        ("bert", "BertModel", False),
        ("electra", "ElectraForPreTraining", False),
        ("electra", "ElectraForMaskedLM", True),
        ("roberta", "RobertaForSequenceClassification", False),
    ],
)
def test_which_checkpoints_say_that_they_have_the_head(model_type: str, head: str, has: bool):
    assert has_masked_lm({"model_type": model_type, "architectures": [head]}) is has
    assert not has_masked_lm({"model_type": model_type})


def test_a_tokenizer_without_a_mask_is_named(tiny_bert: Path):
    with pytest.raises(UnsupportedError, match="no mask token"):
        reader(tiny_bert)
