"""What an encoder-decoder writes, against a plain loop over the stock model; CMUdict's split; edit distance."""

import json
import math
import random
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_pre_hook

from sparsebench.benchmarks import TaskSpec, cmudict, generation, squad
from sparsebench.benchmarks.contract import sampled
from sparsebench.benchmarks.generation import MOST_NEW_TOKENS, Generation, edit_distance
from sparsebench.errors import BenchmarkError
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from tests.benchmarks.conftest import changed, run, score_all, serve_file
from tests.conftest import WORDS

SYMBOLS = st.lists(st.sampled_from("abc"), max_size=6)
ALLOWED = 4
"""Tokens within which some outputs of the speller end, and others do not."""


@pytest.fixture
def dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CMUdict's format; what `sources` fetches."""
    draw = random.Random(4)
    lines = []
    for number in range(200):
        spelling = "".join("abcdefghij"[int(digit)] for digit in f"{number:03}") + "k" * draw.randint(0, 4)
        lines.append(f"{spelling} {' '.join(draw.choices(['AA1', 'B', 'K', 'IY0', 'T'], k=draw.randint(1, 6)))}")
        if number % 5 == 0:
            lines.append(f"{spelling}(2) B AA2 # another way")
    path = tmp_path / "cmudict.dict"
    path.write_text("\n".join(lines) + "\n\n# the end\n")
    serve_file(monkeypatch, path)
    return path


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with random weights that reads letters and writes phonemes, other ones for other words."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("models") / "speller"
    entries = ["<pad>", "</s>", "<unk>", *"abcdefghijk", "AA", "B", "K", "IY", "T"]
    core = Tokenizer(models.WordLevel({entry: place for place, entry in enumerate(entries)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(entries), decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes)
    model = T5ForConditionalGeneration(config)
    torch.manual_seed(0)
    # Transformers' own initial weights make every model repeat one token.
    for name, weight in model.named_parameters():
        if "Attention" in name or "Dense" in name:
            torch.nn.init.normal_(weight, std=0.7)
        elif "shared" in name:
            torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    return folder


def test_a_dictionary_is_read_without_stress_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "cmudict.dict"
    path.write_text("read R EH1 D\nread(2) R IY1 D # now\n\nrecord R AH0 K AO1 R D\nrecord(2) R AH0 K AO2 R D\n")
    read, record = cmudict.read(path)
    assert read == cmudict.Word("read", (("R", "EH", "D"), ("R", "IY", "D")))
    assert record.pronunciations == (("R", "AH", "K", "AO", "R", "D"),), "the two differ in stress alone"
    for line in ("word", "word X1 Y2", "wort V O R T"):
        path.write_text(f"a AH0\n{line}\n")
        with pytest.raises(BenchmarkError, match=r"cmudict\.dict:2: no entry of CMUdict"):
            cmudict.read(path)


def test_the_split_is_a_partition_that_a_word_keeps(dictionary: Path) -> None:
    words = cmudict.read(dictionary)
    parts = {name: cmudict.split(words, name) for name in ("train", "valid", "test")}
    together = [word for part in parts.values() for word in part]
    assert Counter(together) == Counter(words)
    assert 10 < len(parts["test"]) < 35 < 150 < len(parts["train"])
    fewer = cmudict.split(words[::2], "test")
    assert fewer == [word for word in parts["test"] if word in words[::2]], "same part, same order"
    assert [word.spelling for word in fewer] != sorted(word.spelling for word in fewer)


@given(SYMBOLS, SYMBOLS)
def test_the_distance_is_levenshtein_s(one: list[str], other: list[str]) -> None:
    @cache
    def slow(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, slow(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    assert edit_distance(one, other) == slow(len(one), len(other))


def tokens(model: Any, tokenizer: Any, text: str, longest: int = MOST_NEW_TOKENS) -> list[int]:
    """Greedy decoding one token at a time, without a cache."""
    given = torch.tensor([tokenizer(text)["input_ids"]])
    written = [model.config.decoder_start_token_id]
    while len(written) <= longest and written[-1] != model.config.eos_token_id:
        with torch.no_grad():
            logits = model(input_ids=given, decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
    return written


def test_the_tasks_are_a_loop_over_generation(speller: Path, dictionary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(speller, "encoder-decoder"), load_tokenizer(speller)
    words = cmudict.split(cmudict.read(dictionary), "test")
    ids = [tokens(model, tokenizer, word.spelling) for word in words]
    written = [tuple(tokenizer.decode(one, skip_special_tokens=True).split()) for one in ids]
    assert len(set(written)) > 3
    # The first word's answer is what the model writes: a random model gets nothing right.
    right = cmudict.Word(words[0].spelling, (written[0],))
    monkeypatch.setattr(cmudict, "split", lambda *_: [right, *words[1:]])
    steps: list[tuple[int, int]] = []
    specs = [TaskSpec("g2p"), TaskSpec("g2p_per")]
    exact, rate = score_all(speller, "encoder-decoder", specs, progress=lambda *done: steps.append(done))
    assert len(steps) == len(words), "both tasks of a job are served by one generation"
    assert [outcome.value for outcome in exact.outcomes] == [1.0] + [0.0] * (len(words) - 1)
    assert (exact.score, exact.metric, exact.chance, exact.n) == (1 / len(words), "exact_match", 0.0, len(words))
    wanted = [(0, len(written[0]))] + [
        (min(edit_distance(text, answer) for answer in word.pronunciations), len(word.pronunciations[0]))
        for text, word in zip(written[1:], words[1:], strict=True)
    ]
    assert len({label for _, label in wanted}) > 2
    assert [(outcome.value, outcome.label) for outcome in rate.outcomes] == wanted
    assert rate.score == pytest.approx(sum(edits for edits, _ in wanted) / sum(length for _, length in wanted))
    assert (rate.metric, rate.chance, rate.limited) == ("per", None, False)
    assert [outcome.doc_hash for outcome in rate.outcomes] == [outcome.doc_hash for outcome in exact.outcomes]
    assert len({outcome.doc_hash for outcome in rate.outcomes}) == len(words)
    assert exact.protocol["documents_sha256"] == rate.protocol["documents_sha256"]
    json.dumps(rate.protocol)


def test_a_model_s_own_settings_of_decoding_change_nothing(speller: Path, dictionary: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(speller, tmp_path / "strict"))
    settings = json.loads((folder / "generation_config.json").read_text())
    strict = {"suppress_tokens": [14], "repetition_penalty": 5.0, "min_new_tokens": 3, "no_repeat_ngram_size": 1}
    (folder / "generation_config.json").write_text(json.dumps(settings | strict))
    ours, plain = (run(path, "encoder-decoder", "g2p_per").outcomes for path in (folder, speller))
    assert ours == plain
    (folder / "generation_config.json").write_text(json.dumps(settings | {"forced_bos_token_id": 15}))
    assert run(folder, "encoder-decoder", "g2p_per").outcomes != plain, "a first token of the model's stays"


def test_other_tasks_of_a_job_keep_the_model_s_own_settings_of_decoding(speller: Path) -> None:
    model = load_model(speller, "encoder-decoder")
    model.generation_config.repetition_penalty = 5.0
    Generation(model, load_tokenizer(speller)).generate(["abc"], 2)
    assert model.generation_config.repetition_penalty == 5.0


def test_limit_draws_words_and_outputs_without_an_end_are_cut_off(
    speller: Path, dictionary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    whole = run(speller, "encoder-decoder", "g2p_per")
    some = run(speller, "encoder-decoder", "g2p_per", limit=7, progress=lambda *done: seen.append(done))
    assert (some.n, some.limited, some.protocol["documents"]) == (7, True, whole.n)
    assert some.outcomes == tuple(whole.outcomes[p] for p in sampled(whole.n, 7))
    assert seen[-1] == (7, 7)
    model, tokenizer = load_model(speller, "encoder-decoder"), load_tokenizer(speller)
    words = cmudict.split(cmudict.read(dictionary), "test")
    ended = [model.config.eos_token_id in tokens(model, tokenizer, word.spelling, ALLOWED) for word in words]
    assert 0 < sum(ended) < len(ended)
    monkeypatch.setattr(generation, "MOST_NEW_TOKENS", ALLOWED)
    assert run(speller, "encoder-decoder", "g2p").protocol["cut_off"] == len(ended) - sum(ended)
    broken = changed(speller, tmp_path / "broken", lambda name, tensor: tensor.fill_(math.nan))
    with pytest.raises(BenchmarkError, match="not finite"):
        run(broken, "encoder-decoder", "g2p")


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Requests as SQuAD's package has them; what `sources` fetches."""
    draw, rows = random.Random(2), []
    begin = " ".join(draw.choices(WORDS, k=90))
    for number in range(6):
        query = f"{' '.join(draw.choices(WORDS, k=12 + number // 2))}\nQuestion: {' '.join(draw.choices(WORDS, k=4))}"
        if number == 1:
            query = rows[0]["doc"]["query"] + " the"
        request = {"context": f"{begin} {query}"}
        rows.append({"request": request, "doc": {"query": query}, "label": ["The cat.", "a dog"]})
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    serve_file(monkeypatch, path)
    return rows


@pytest.mark.parametrize("shared", [64, 10_000])
def test_squad_is_a_plain_loop_whether_or_not_what_inputs_share_is_read_once(
    shared: int, tiny_llama: Path, questions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "FEWEST_SHARED", shared)
    model, tokenizer = load_model(tiny_llama, "decoder").float(), load_tokenizer(tiny_llama)
    read: list[int] = []

    def count(module: torch.nn.Module, given: Any) -> None:
        read.extend(tokens.shape[1] for tokens in given if isinstance(module, torch.nn.Embedding))

    with register_module_forward_pre_hook(count):
        found = [run(tiny_llama, "decoder", task, dtype="float32") for task in ("squad", "squad_f1")]
    assert (sum(length > 64 for length in read) == len(found)) is (shared == 64), "once for all inputs of a task"
    wanted = []
    for row in questions:
        ids = tokenizer(row["request"]["context"], return_tensors="pt")["input_ids"]
        shown = ids.shape[1]
        for _ in range(24):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
            if int(ids[0, -1]) == model.config.eos_token_id:
                break
        text = tokenizer.decode(ids[0, shown:], skip_special_tokens=True)
        wanted.append(squad.words(text.partition("\n")[0]))
    assert len(set(wanted)) > 1
    answers = [squad.words(answer) for answer in questions[0]["label"]]
    best = [max(squad.f1(words, answer) for answer in answers) for words in wanted]
    assert [outcome.value for outcome in found[0].outcomes] == [float(words in answers) for words in wanted]
    assert [outcome.value for outcome in found[1].outcomes] == best
    clusters = [outcome.cluster for outcome in found[0].outcomes]
    assert clusters[0] == clusters[1] and len(set(clusters)) == len(questions) - 1
    assert (found[0].metric, found[0].chance, found[1].metric) == ("exact_match", 0.0, "f1")


def test_answers_of_squad_are_compared_as_its_authors_do() -> None:
    assert squad.words(" The  Cat, of an 'Owner'. ") == ("cat", "of", "owner")
    assert squad.f1(("cat", "of", "owner"), ("cat", "cat")) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert (squad.f1((), ()), squad.f1(("a",), ()), squad.f1(("x", "y"), ("y", "x"))) == (1.0, 0.0, 1.0)
