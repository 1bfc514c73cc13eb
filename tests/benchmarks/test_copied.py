"""Whether a calibration text holds a task's documents, whatever its file is called."""

import json
import re
from pathlib import Path

import pytest

from sparsebench import sources
from sparsebench.benchmarks import FittedTexts, ScoreResult, TaskSpec, all_tasks, data_sources
from sparsebench.benchmarks import overlap as room
from sparsebench.benchmarks.overlap import CHARACTER_RUN, RUN, copied
from sparsebench.errors import BenchmarkError
from sparsebench.models.files.text import load_tokenizer
from sparsebench.sources.text import read_records, read_texts
from sparsebench.steps.calibration import DEFAULT, Calibration, sample_texts, tokens
from tests.benchmarks.conftest import score_all
from tests.benchmarks.own_data import own, written

PASSAGE = (
    "The mill stood where the river bends for the last time before the sea, and nobody in the village could remember "
    "a year in which its wheel had not turned from the first thaw until the night of the first frost."
)


def documents(task: str) -> list[str]:
    """The first long text of each of a task's records, each once."""
    path = sources.fetch(sources.parse(data_sources(task)[0]), sources.Cache())
    found = (
        next((text for text in room._texts(record) if len(text.split()) > 30), "") for record in read_records(path)
    )
    return [text for text in dict.fromkeys(found) if text]


def test_a_copy_is_known_by_its_words_and_a_quotation_is_not_a_copy() -> None:
    fitted = FittedTexts(["Something else.", f"Before it. {PASSAGE.upper()} After it."])
    assert fitted.holds(PASSAGE)
    assert fitted.holds(PASSAGE.replace(",", " –"))
    assert not fitted.holds(PASSAGE[:40])  # under RUN words
    quoted = " ".join(PASSAGE.split()[: RUN + 1])
    assert fitted.holds(quoted)
    assert not fitted.holds(
        f"{quoted} as the miller wrote to his sister when she asked him what there was to see there"
    )
    assert not fitted.holds(" ".join(reversed(PASSAGE.split())))


CHINESE = (
    "磨坊立在河流入海前最后一个弯道旁，村里没有人记得哪一年它的水车不是从初融一直转到第一场霜降的夜晚。"
    "磨坊主每天清晨打开闸门，孩子们就在岸边数着木轮上的水珠。",
    "图书馆的旧楼在去年秋天重新开放，读者可以在二楼借阅地方志，也可以在院子里听每周一次的讲座。",
)
JAPANESE = (
    "水車小屋は海へ出る前の最後の曲がり角に立っていて、村の人々は誰も車輪が止まった年を思い出せなかった。",
    "古い図書館は去年の秋に再び開かれ、二階では町の歴史についての本を借りることができるようになった。",
)
THAI = (
    "โรงสีตั้งอยู่ตรงที่แม่น้ำโค้งเป็นครั้งสุดท้ายก่อนถึงทะเลและไม่มีใครในหมู่บ้านจำได้ว่าปีใดที่กังหันหยุดหมุน",
    "ห้องสมุดเก่าเปิดอีกครั้งเมื่อฤดูใบไม้ร่วงปีที่แล้วผู้อ่านสามารถยืมหนังสือประวัติศาสตร์ท้องถิ่นได้ที่ชั้นสอง",
)


@pytest.mark.parametrize(("passage", "other"), [CHINESE, JAPANESE, THAI], ids=["Chinese", "Japanese", "Thai"])
def test_a_copy_is_known_in_a_script_without_spaces(passage: str, other: str) -> None:
    fitted = FittedTexts([f"{other}{passage}{other[:20]}"])
    assert fitted.holds(passage)
    assert fitted.holds(passage.replace("，", " ").replace("、", "・"))
    assert not FittedTexts([other]).holds(passage)
    assert not fitted.holds(passage[: RUN + 5])  # as little as a dozen words
    assert not fitted.holds("".join(reversed(passage)))
    quoted = passage[: CHARACTER_RUN + 10]
    assert not FittedTexts([quoted]).holds(passage + other)


def test_words_between_characters_are_part_of_a_copy() -> None:
    text = f"{CHINESE[0][:20]} SmolLM2 {CHINESE[0][20:40]} and {CHINESE[1][:30]}"
    assert FittedTexts([PASSAGE, f"{CHINESE[1]}{text}{PASSAGE}"]).holds(text.replace("SmolLM2", "smollm2,"))
    assert not FittedTexts([PASSAGE]).holds(text)


@pytest.mark.parametrize("text", [PASSAGE, f"{PASSAGE} Où est-il, l'été_1? Привет Ελλάδα 안녕하세요"])
def test_words_with_spaces_are_what_they_were(text: str) -> None:
    assert len(FittedTexts([text]).run_hashes) == len(re.findall(r"\w+", text)) - RUN + 1


def test_a_list_of_long_answers_is_several_texts_and_a_list_of_words_is_one(tmp_path: Path) -> None:
    answers = [CHINESE[0][:40], CHINESE[1][:40], "水车", "春天"]
    words = PASSAGE.replace(",", "").split()
    own_data = own("generation", written(tmp_path / "own.jsonl", [{"input": answers, "target": words}]))
    for fitted_text, found in ((answers[1], answers[1]), (PASSAGE, " ".join(words)), ("".join(answers[2:]), None)):
        copies = copied(FittedTexts([fitted_text]), TaskSpec("own", own=own_data), sources.Cache())
        assert copies == ([found] if found else [])


def test_a_text_that_many_documents_repeat_counts_in_each_and_is_searched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"input": text, "target": str(number)} for number in range(3) for text in (PASSAGE, CHINESE[0])]
    own_data, fitted, searched = own("generation", written(tmp_path / "own.jsonl", rows)), FittedTexts([PASSAGE]), []
    holds = fitted.holds
    monkeypatch.setattr(fitted, "holds", lambda text: searched.append(text) or holds(text))
    assert copied(fitted, TaskSpec("own", own=own_data), sources.Cache()) == 3 * [PASSAGE]
    assert searched.count(CHINESE[0]) == 1


@pytest.mark.parametrize("texts", [[], [""], ["too short"]])
def test_nothing_holds_nothing(texts: list[str]) -> None:
    assert not FittedTexts(texts).holds(PASSAGE)


@pytest.mark.parametrize("task", ["hellaswag", "boolq", "perplexity", "mrpc_pair", "mmlu"])
@pytest.mark.long
def test_a_file_of_ones_own_is_found_out(task: str) -> None:
    """Three documents under another file's name, between other texts."""
    if task == "mmlu":
        folder = sources.fetch(sources.parse(data_sources(task)[0]), sources.Cache())
        file = next(folder.glob("professional_law/test/*.arrow"))
        stolen = [record["question"] for record in read_records(file) if len(record["question"].split()) > 40][:3]
    else:
        stolen = documents(task)[:3]
    fitted = FittedTexts([PASSAGE, *stolen])
    found = copied(fitted, TaskSpec(task), sources.Cache())
    assert found is not None and len(found) >= len(stolen)
    assert all(fitted.holds(text) for text in found)


@pytest.mark.long
def test_the_default_text_copies_no_task_but_its_own() -> None:
    source = sources.fetch(sources.parse(DEFAULT.source), sources.Cache())
    fitted = FittedTexts(text for (text,) in read_texts(source, "passage").rows)
    # WikiText-2 alone lies on the hub as a file.
    names = [name for name in all_tasks() if name != "wikitext2"]
    counts = {name: copied(fitted, TaskSpec(name), sources.Cache()) for name in names}
    held = {name: len(found) for name, found in counts.items() if found}
    assert set(held) == {"boolq"} and held["boolq"] > 1000
    unknown = {name for name, found in counts.items() if found is None}
    assert unknown == {"g2p", "g2p_per", *(name for name, task in all_tasks().items() if task.hub and not task.data)}


def test_drawn_holds_what_the_samples_are_made_of(tiny_llama: Path, tiny_bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"text": f"passage number {place} {PASSAGE}"}) + "\n" for place in range(50)))
    every = {text for (text,) in read_texts(file).rows}
    cases = ((tiny_llama, "decoder", 2, 9), (tiny_llama, "decoder", 30, 50), (tiny_bert, "encoder", 20, 20))
    for folder, family, samples, most in cases:
        asked = Calibration(f"path:{file}", samples=samples, length=64)
        found = list(sample_texts(folder, family, asked, sources.Cache()))
        assert set(found) <= every
        assert samples <= len(found) <= most


def test_texts_too_short_to_be_cut_in_two_count_as_no_sample(tiny_t5: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    texts = ["cat", "dog", "sat", "the cat sat", "the dog ran", "a red house"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for samples in (1, 2, 3):
        asked = Calibration(f"path:{file}", samples=samples, length=16)
        batch = tokens(tiny_t5, "encoder-decoder", asked, sources.Cache()).batch
        first_words = load_tokenizer(tiny_t5).convert_ids_to_tokens(batch.input_ids[:, 0].tolist())
        found = list(sample_texts(tiny_t5, "encoder-decoder", asked, sources.Cache()))
        assert {text.split()[0] for text in found} >= set(first_words)
        assert sum(" " in text for text in found) == samples


@pytest.mark.long
def test_a_score_on_copied_documents_is_refused_or_says_so(tiny_llama: Path) -> None:
    stolen, specs = documents("perplexity")[:2], [TaskSpec("perplexity", limit=1)]
    refused, granted = (
        score_all(tiny_llama, "decoder", specs, fitted=FittedTexts(stolen, allowed))[0] for allowed in (False, True)
    )
    assert isinstance(refused, BenchmarkError)
    assert all(word in str(refused) for word in ("perplexity", "documents, word for word", "allow_overlap"))
    assert isinstance(granted, ScoreResult) and int(granted.protocol["calibration_copies"]) >= 2
