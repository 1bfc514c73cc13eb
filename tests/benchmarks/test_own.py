"""Data of one's own: each kind against a plain count."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from typer.testing import CliRunner

from sparsebench import sources
from sparsebench.benchmarks import OwnData
from sparsebench.benchmarks.choices import documents
from sparsebench.benchmarks.contract import sampled
from sparsebench.benchmarks.generation import Generation, GenerationExample, metric_values
from sparsebench.benchmarks.own import content
from sparsebench.benchmarks.running_text import wikitext
from sparsebench.benchmarks.statistics import ratio
from sparsebench.cli.app import app
from sparsebench.errors import BenchmarkError, SourceError, SparsebenchError, UserError
from sparsebench.manifest.problems import ManifestError
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from sparsebench.plan import single
from sparsebench.plan.single import SingleModel
from tests.benchmarks.conftest import run, sentence
from tests.benchmarks.own_data import DRAW, own, scored, written
from tests.benchmarks.test_generation import speller  # noqa: F401
from tests.benchmarks.test_perplexity import with_bos
from tests.conftest import WORDS


def test_perplexity_of_a_text_is_a_loop_over_overlapping_windows(tiny_llama: Path, tmp_path: Path) -> None:
    texts = [sentence(DRAW, 20, 60) for _ in range(12)]
    texts += ["", texts[0]]  # what is empty is left out, what is there twice is not
    path = written(tmp_path / "notes.jsonl", [{"body": text} for text in texts])
    found = scored(tiny_llama, "decoder", "perplexity", path, field="body", length=64, stride=24)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama).float(), load_tokenizer(tiny_llama)
    ids = tokenizer("\n\n".join(text for text in texts if text), add_special_tokens=False)["input_ids"]
    total = count = 0.0
    for begin in range(0, len(ids) - 64 + 1, 24):
        window = torch.tensor([ids[begin : begin + 64]])
        with torch.no_grad():
            chances = model(window).logits[0].log_softmax(-1)
        for place in range(1 if not begin else 64 - 24, 64):
            total -= float(chances[place - 1, window[0, place]])
            count += 1
    assert found.score == pytest.approx(math.exp(total / count), rel=0.01)
    assert found.protocol["scored_tokens"] == count
    assert {"window": 64, "stride": 24, "data": "path:notes.jsonl", "passages": 13}.items() <= found.protocol.items()
    assert found.protocol["bits_per_byte"] == pytest.approx(
        math.log(found.score) / math.log(2) * count / found.protocol["scored_bytes"]
    )
    with pytest.raises(BenchmarkError, match="300 tokens.*at most 256"):
        scored(tiny_llama, "decoder", "perplexity", path, field="body", length=300)
    with pytest.raises(SourceError, match="no field 'text'"):
        scored(tiny_llama, "decoder", "perplexity", path)


def test_a_compressed_file_is_estimated_alike_whatever_the_case_of_its_suffix(tmp_path: Path) -> None:
    lower, upper = tmp_path / "notes.jsonl.gz", tmp_path / "NOTES.JSONL.GZ"
    for path in (lower, upper):
        path.write_bytes(gzip.compress(b'{"input": "a cat", "target": "b"}\n' * 500))
    estimates = {own("generation", path).estimate_documents(sources.Cache()) for path in (lower, upper)}
    assert len(estimates) == 1 and estimates != {0}


def test_wikitext_is_read_alike_from_the_hubs_table_and_a_raw_file(tiny_llama: Path, tmp_path: Path) -> None:
    rows = ["\n" if place % 3 == 0 else f" {sentence(DRAW, 5, 90)} \n" for place in range(90)]
    raw, table = tmp_path / "wiki.test.raw", tmp_path / "test.parquet"
    raw.write_text("".join(rows))
    pq.write_table(pa.table({"text": ["" if row == "\n" else row for row in rows]}), table)
    ids = load_tokenizer(tiny_llama)("\n\n".join("" if row == "\n" else row for row in rows))["input_ids"]
    both = [scored(tiny_llama, "decoder", "wikitext2", path, length=128) for path in (raw, table)]
    assert both[0].outcomes == both[1].outcomes
    assert both[0].n == len(ids) // 128
    assert both[0].protocol["window"] == 128
    assert "bits_per_byte" in both[0].protocol
    raw.write_bytes(raw.read_bytes() + " a line\u2028of\r one \n".encode())  # lines end at \n only
    assert wikitext(raw).endswith("\n\n a line\u2028of\r one \n")
    for suffix, compress in ((".zst", zstandard.compress), (".gz", gzip.compress)):
        packed = tmp_path / f"wiki.test.raw{suffix}"
        packed.write_bytes(compress(raw.read_bytes()))
        assert wikitext(packed) == wikitext(raw)
    packed.write_bytes(raw.read_bytes())
    with pytest.raises(BenchmarkError, match="wiki.test.raw.gz"):
        wikitext(packed)


def test_the_first_token_of_a_published_text_stands_once(tiny_llama: Path, tmp_path: Path) -> None:
    folder = with_bos(tiny_llama, tmp_path / "with-bos")
    path = tmp_path / "wiki.test.raw"
    path.write_text("\n".join(sentence(DRAW, 30, 60) for _ in range(20)))
    ids = load_tokenizer(folder)(path.read_text().replace("\n", "\n\n\n"))["input_ids"]
    found = scored(folder, "decoder", "wikitext2", path, length=64)
    assert (found.n, found.protocol["dropped_tokens"]) == divmod(len(ids), 64)
    assert found.protocol["bos_stands"] == "before the text, once"
    plain = scored(folder, "decoder", "perplexity", path, length=64)
    assert plain.n == (len(ids) - 1) // 63
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder).float()
        window = torch.tensor([ids[:64]])
        loss = float(model(window, labels=window).loss)
    assert found.outcomes[0].value / 63 == pytest.approx(loss, rel=0.01)


def test_choices_are_scored_by_log_likelihood(tiny_llama: Path, tmp_path: Path) -> None:
    records = []
    for place in range(12):
        options = [sentence(DRAW, 1, 4) for _ in range(2 + place % 3)]
        records.append({"question": f"{sentence(DRAW)} {{{{ 7 * 7 }}}}", "options": options, "answer": place % 2})
    records[3]["answer"] = records[3]["options"][1]
    path = written(tmp_path / "quiz.jsonl", records)
    columns = (("context", "question"), ("choices", "options"), ("gold", "answer"))
    found = scored(tiny_llama, "decoder", "choices", path, columns=columns)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), load_tokenizer(tiny_llama)

    def likelihood(context: str, choice: str) -> float:
        start = len(tokenizer(context)["input_ids"])
        ids = tokenizer(f"{context} {choice}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            chances = model(ids).logits[0].log_softmax(-1)
        return sum(float(chances[place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))

    right = []
    for record in records:
        values = [likelihood(record["question"], choice) for choice in record["options"]]
        gold = record["answer"] if isinstance(record["answer"], int) else 1
        right.append(float(np.argmax(values) == gold))
    assert [outcome.value for outcome in found.outcomes] == right
    assert (found.metric, found.n) == ("acc", 12)
    assert found.chance == pytest.approx(sum(1 / len(record["options"]) for record in records) / 12)
    part = scored(tiny_llama, "decoder", "choices", path, limit=5, columns=columns)
    assert part.outcomes == tuple(found.outcomes[place] for place in sampled(12, 5))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"choices": ["one"]}, "choices is .*, not a list of two"),
        ({"choices": "one two"}, "choices is"),
        ({"gold": 2}, "gold is '2', not one of its choices"),
        ({"gold": True}, "gold is 'True', not one of its choices"),
        ({"context": ""}, "context is .*, not a text"),
    ],
)
def test_a_record_that_is_no_question_is_named(broken: dict[str, Any], words: str, tmp_path: Path) -> None:
    whole = {"context": "the cat", "choices": ["sat", "ran"], "gold": 0}
    path = written(tmp_path / "quiz.jsonl", [whole, whole | broken])
    with pytest.raises(BenchmarkError, match=f"record 2: {words}"):
        documents("quiz", str(path), ["context", "choices", "gold"])


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_answers_count_word_for_word(family: str, tiny_llama: Path, speller: Path, tmp_path: Path) -> None:  # noqa: F811
    folder, auto, asked = tiny_llama, AutoModelForCausalLM, [sentence(DRAW) for _ in range(6)]
    if family != "decoder":
        folder, auto, asked = speller, AutoModelForSeq2SeqLM, ["abc", "badge", "cafe", "jade", "face", "kid"]
    model, tokenizer = auto.from_pretrained(folder), load_tokenizer(folder)
    answers = []
    for text in asked:
        given = tokenizer(text, return_tensors="pt")["input_ids"]
        ids = model.generate(input_ids=given, max_new_tokens=6, do_sample=False)[0]
        ids = ids[given.shape[1] :] if family == "decoder" else ids
        answers.append(tokenizer.decode(ids, skip_special_tokens=True))
    assert all(answers), "a model that writes nothing shows nothing"
    records = [{"input": text, "target": [answer, "or so"]} for text, answer in zip(asked, answers, strict=True)]
    records[2]["target"] = answers[2] + " not"
    found = scored(folder, family, "generation", written(tmp_path / "facts.jsonl", records), length=6)
    assert [outcome.value for outcome in found.outcomes] == [1, 1, 0, 1, 1, 1]
    assert (found.metric, found.chance, found.protocol["max_new_tokens"]) == ("exact_match", 0.0, 6)


def test_a_decoders_answer_is_its_first_line_and_an_input_that_does_not_fit_is_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    decode = tokenizer.batch_decode
    tokenizer.batch_decode = lambda ids, **kept: [f"one two\n{text}" for text in decode(ids, **kept)]
    assert Generation(load_model(tiny_llama, "decoder"), tokenizer).generate(["the cat"]) == [(("one", "two"), True)]
    path = written(tmp_path / "long.jsonl", [{"input": "the cat " * 200, "target": "sat"}])
    with pytest.raises(BenchmarkError, match="400 tokens.*256"):
        scored(tiny_llama, "decoder", "generation", path)


def test_similarity_is_spearmans_correlation_with_the_scores(tiny_bert: Path, tmp_path: Path) -> None:
    lines = ["left,right,score"]
    lines += [f"{sentence(DRAW)},{sentence(DRAW)},{DRAW.random():.3f}" for _ in range(30)]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines))
    columns = (("sentence1", "left"), ("sentence2", "right"))
    found = scored(tiny_bert, "encoder", "similarity", path, columns=columns)
    values = [outcome.value for outcome in found.outcomes]
    gold = [float(line.split(",")[2]) for line in lines[1:]]
    assert [outcome.label for outcome in found.outcomes] == gold
    assert found.score == pytest.approx(spearmanr(values, gold).statistic)
    with pytest.raises(BenchmarkError, match="no field 'sentence1'|no column 'sentence1'"):
        scored(tiny_bert, "encoder", "similarity", path)
    path.write_text("\ufeff" + "\n".join(lines))  # as spreadsheets save it
    assert scored(tiny_bert, "encoder", "similarity", path, columns=columns).score == found.score
    path.write_text("\n".join([*lines[:2], "alone", *lines[2:]]))
    with pytest.raises(BenchmarkError, match="record 2: right is"):
        scored(tiny_bert, "encoder", "similarity", path, columns=columns)


def test_a_probe_takes_classes_by_name(tiny_bert: Path, tmp_path: Path) -> None:
    records = [
        {"text": f"{word} {sentence(DRAW, 2, 4)}", "label": word} for word in ("cat", "dog", "tree") for _ in range(60)
    ]
    path = written(tmp_path / "tickets.jsonl", records)
    found = scored(tiny_bert, "encoder", "probe", path)
    assert (found.n, found.chance, found.protocol["classes"]) == (90, pytest.approx(1 / 3), "cat, dog, tree")
    assert found.score > 0.5, "the first word tells"
    few = written(tmp_path / "few.jsonl", records[:20] + records[60:80])
    with pytest.raises(BenchmarkError, match="16 needed"):
        scored(tiny_bert, "encoder", "probe", few)


def test_data_that_change_after_the_plan_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(sentence(DRAW, 80, 90))
    planned = own("perplexity", path, length=16)
    path.write_text(sentence(DRAW, 80, 90))
    with pytest.raises(SparsebenchError, match="path:notes.txt: it has changed"):
        run(tiny_llama, "decoder", "notes", own=planned)


def test_the_content_and_the_suffix_are_what_identifies_data_and_not_the_path(tmp_path: Path) -> None:
    def hashed(source: str, text: str = "") -> str:
        if text:
            (tmp_path / source).parent.mkdir(exist_ok=True)
            (tmp_path / source).write_text(text)
            source = f"path:{tmp_path / source}"
        return content(sources.parse(source), sources.Cache())

    assert hashed("notes.jsonl", '"a"') == hashed("there/v1.others.jsonl", '"a"')
    assert len({hashed("a.jsonl", '"a"'), hashed("b.jsonl", '"b"'), hashed("a.txt", '"a"')}) == 3
    packaged = "wheel:pack==1.0!pack/notes.bin#sha256=" + "a" * 64
    assert len({hashed(packaged + name) for name in ("", " as notes.csv", " as notes.txt")}) == 3


@pytest.mark.parametrize(
    ("metric", "text", "target", "wanted"),
    [
        ("f1", "The cat sat.", "a cat", 2 * 0.5 * 1 / 1.5),
        ("rouge_l", "the cat sat", "the dog sat", 2 / 3),
        ("rouge_l", "le chat, assis", "LE CHAT dormait", 2 / 3),
        ("rouge_l", "привет мир", "Привет, мир", 1.0),
        ("rouge_l", "été", "t", 0.0),
        ("chrf", "the cat", "the cat", 1.0),
        ("word_error_rate", "the cat sat down", "the dog sat", 2 / 3),
    ],
)
def test_an_answer_is_compared_as_asked(metric: str, text: str, target: str, wanted: float) -> None:
    targets = [target, target if metric == "word_error_rate" else "or so many words"]
    example = GenerationExample("the", tuple(tuple(answer.split()) for answer in targets))
    task = OwnData("generation", "content", metric=metric).benchmark("facts")
    values, lengths = metric_values(task, [example] * 3, [tuple(text.split())] * 3)
    assert ratio(values, lengths or [1.0] * 3)[0] == pytest.approx(wanted)


def test_examples_are_other_records(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.instance import Instance

    records = [{"context": word, "choices": ["cat", "dog"], "gold": place % 2} for place, word in enumerate(WORDS)]
    data, shown = own("choices", written(tmp_path / "quiz.jsonl", records)), []
    made = Instance.__init__
    monkeypatch.setattr(
        Instance, "__init__", lambda self, *args, **more: (made(self, *args, **more), shown.append(self.args))[0]
    )
    found = run(tiny_llama, "decoder", "choices", num_fewshot=3, own=data)
    assert found.n == len(records) and found.protocol["num_fewshot"] == 3
    answers = {record["context"]: record["choices"][record["gold"]] for record in records}
    assert len(shown) == 2 * len(records)
    for prompt, _ in shown:
        *examples, asked = prompt.split("\n\n")
        assert len(examples) == 3 and asked in answers
        assert all(example.split() == [word, answers[word]] for example in examples for word in [example.split()[0]])
        assert asked not in {example.split()[0] for example in examples}
    with pytest.raises(BenchmarkError, match=f"there are {len(records)} records"):
        run(tiny_llama, "decoder", "choices", num_fewshot=len(records), own=data)


def test_score_takes_a_manifests_tasks(tiny_llama: Path, tmp_path: Path) -> None:
    written(tmp_path / "notes.jsonl", [{"text": sentence(DRAW, 20, 40)} for _ in range(8)])
    written(tmp_path / "quiz.jsonl", [{"context": sentence(DRAW), "choices": ["cat", "dog"], "gold": 0}] * 6)
    manifest = tmp_path / "m.yaml"
    manifest.write_text(
        f"version: 1\nmodels: [{{name: m, source: 'path:{tiny_llama}', family: decoder}}]\nbenchmarks:\n  decoder:\n"
        "  - {task: perplexity, source: path:notes.jsonl, length: 32}\n"
        "  - {task: choices, source: path:quiz.jsonl, name: quiz, limit: 4}\n"
    )

    def asked(*more: str) -> Any:
        return CliRunner().invoke(app, ["score", str(tiny_llama), "--manifest", str(manifest), "--json", *more])

    rows = {row["task"]: row for row in json.loads(asked().stdout)}
    assert rows["quiz"]["n"] == 4
    alone = scored(tiny_llama, "decoder", "perplexity", tmp_path / "notes.jsonl", length=32)
    # Here in the weights' bfloat16, there in float32 where the CPU would emulate that.
    assert rows["perplexity-notes"]["score"] == pytest.approx(alone.score, rel=0.01)
    assert [row["n"] for row in json.loads(asked("--limit", "2").stdout)] == [2, 2]
    manifest.write_text(manifest.read_text().replace("length: 32", "length: 300"))
    refused = asked()
    assert isinstance(refused.exception, ManifestError) and "300 tokens" in str(refused.exception)
    with pytest.raises(UserError, match="encoder"):
        single.manifest_tasks(manifest, SingleModel("m", tiny_llama, "encoder"), sources.Cache())
