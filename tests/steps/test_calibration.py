"""Calibration text to tokens: the same everywhere, of the shape that the family reads, or refused by name."""

import hashlib
import json
import random
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench import sources
from sparsebench.errors import ModelError, SourceError, UnsupportedError, UserError
from sparsebench.steps.calibration import DEFAULT, LENGTH, Calibrated, Calibration, fingerprint, resolve_length, tokens
from tests.conftest import WORDS
from tests.models.model_zoo import small

CLS = "<s> $A </s>"


def passages(count: int, longest: int = 40, seed: int = 1) -> list[str]:
    """Distinct passages of some words."""
    draw = random.Random(seed)
    found = [" ".join([f"n{place}", *draw.choices(WORDS, k=draw.randint(3, longest))]) for place in range(count)]
    assert len(set(found)) == count
    return found


def in_order(seed: int) -> list[str]:
    """The passages of ``text`` as a seed orders them."""
    return sorted(passages(60), key=lambda passage: hashlib.sha256(f"{seed}\x1f{passage}".encode()).digest())


def model(folder: Path, config: dict[str, Any], frame: str = "$A", pad: bool = True, limit: int = 300) -> Path:
    """A folder with a config.json and a tokenizer that puts ``frame`` around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "<s>", "</s>", "<unk>", *WORDS, "a", *(f"n{place}" for place in range(limit))]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(known))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=frame, pair=None, special_tokens=[(name, vocabulary[name]) for name in ("<s>", "</s>")]
    )
    named = {"pad_token": "<pad>"} if pad else {}
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **named
    ).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"path:{path}"


@pytest.fixture
def text(tmp_path: Path) -> str:
    return written(tmp_path / "text.jsonl", [{"passage": passage} for passage in passages(60)])


def calibrated(folder: Path, family: Any, source: str, **settings: Any) -> Calibrated:
    calibration = Calibration(source, **{"samples": 4, "length": 16, "field": "passage"} | settings)
    return tokens(folder, family, calibration, sources.Cache())


def words(folder: Path, ids: Any) -> list[str]:
    from transformers import AutoTokenizer

    found: list[str] = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(list(map(int, ids)))
    return found


@pytest.mark.parametrize("frame", ["$A", "<s> $A"])
def test_a_decoder_reads_windows_of_the_joined_texts_in_seeded_order(frame: str, text: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", small("llama"), frame)
    found = calibrated(folder, "decoder", text, seed=5)
    ids = found.batch.input_ids
    assert ids.shape == found.batch.attention_mask.shape == (4, 16)
    assert ids.dtype == torch.int64 and found.batch.attention_mask.dtype == torch.bool
    assert found.batch.attention_mask.all() and found.batch.decoder_input_ids is None
    assert found.tokens == 4 * 16
    # The slow, obvious way.
    stream = "\n\n".join(in_order(5)).split()
    first = ["<s>"] if frame.startswith("<s>") else []
    room = 16 - len(first)
    for place, window in enumerate(ids):
        assert words(folder, window) == first + stream[place * room : (place + 1) * room]


def test_passages_are_joined_with_a_blank_line(tmp_path: Path) -> None:
    """With a tokenizer that sees white space."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"\n": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(small("llama")))
    source = written(tmp_path / "t.jsonl", [{"passage": "a"}, {"passage": "b"}])
    found = calibrated(tmp_path / "model", "decoder", source, samples=1, length=4)
    (ids,) = found.batch.input_ids.tolist()
    assert ids in ([1, 0, 0, 2], [2, 0, 0, 1])


@pytest.mark.parametrize("pad", [True, False])
def test_an_encoder_reads_a_passage_a_sample_padded_on_the_right(pad: bool, text: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", small("bert"), CLS, pad)
    found = calibrated(folder, "encoder", text, samples=12, length=24)
    ids, mask = found.batch.input_ids, found.batch.attention_mask
    ordered = in_order(0)
    assert {len(passage.split()) > 22 for passage in ordered[:12]} == {True, False}
    for row, kept, passage in zip(ids, mask, ordered[:12], strict=True):
        assert words(folder, row[kept]) == ["<s>", *passage.split()[:22], "</s>"]
        assert set(words(folder, row[~kept])) <= {"<pad>" if pad else "</s>"}
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
    assert found.tokens == int(mask.sum()) < mask.numel()
    # Samples are no longer than the longest.
    whole = calibrated(folder, "encoder", text, samples=12, length=64).batch.input_ids
    assert whole.shape[1] == max(len(passage.split()) for passage in ordered[:12]) + 2 > ids.shape[1] == 24


@pytest.mark.parametrize(("model_type", "start"), [("t5", 0), ("bart", 2)])
def test_both_stacks_read_one_half(model_type: str, start: int, text: str, tmp_path: Path) -> None:
    frame = "$A </s>" if model_type == "t5" else CLS
    folder = model(tmp_path / "model", small(model_type), frame)
    found = calibrated(folder, "encoder-decoder", text, samples=9, length=17)
    batch = found.batch
    assert batch.decoder_input_ids is not None and batch.decoder_attention_mask is not None
    ordered = in_order(0)
    before = ["<s>"] * (model_type == "bart")
    room = 17 - 1 - len(before)
    for place, passage in enumerate(ordered[:9]):
        said = passage.split()
        first, second = said[: len(said) // 2], said[len(said) // 2 :]
        assert words(folder, batch.input_ids[place][batch.attention_mask[place]]) == [*before, *first[:room], "</s>"]
        ids = batch.decoder_input_ids[place][batch.decoder_attention_mask[place]]
        assert int(ids[0]) == start
        assert words(folder, ids[1:]) == [*before, *second[:room]]
    assert found.tokens == int(batch.attention_mask.sum() + batch.decoder_attention_mask.sum())
    # What is trained on has the token that comes last too.
    asked, cache = Calibration(text, 5, 64, field="passage"), sources.Cache()
    plain, whole = (tokens(folder, "encoder-decoder", asked, cache, training=on).batch for on in (False, True))
    for sample in range(5):
        shorter, longer = (
            one.decoder_input_ids[sample][one.decoder_attention_mask[sample]].tolist() for one in (plain, whole)
        )
        assert longer[:-1] == shorter and words(folder, longer[-1:]) == ["</s>"]


def test_the_decoder_reads_what_transformers_would_shift(tmp_path: Path) -> None:
    """Against T5's own shift of padded labels, over the real tokens."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder = model(tmp_path / "model", small("t5"), "$A </s>")
    rows = [{"en": f"the cat n{place}", "de": " ".join(["one two", *["red"] * place])} for place in range(6)]
    source = written(tmp_path / "t.jsonl", rows)
    found = calibrated(folder, "encoder-decoder", source, samples=6, length=9, field="en", target="de")
    batch = found.batch
    assert batch.decoder_input_ids is not None and batch.decoder_attention_mask is not None
    inner = [words(folder, row[mask]) for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    targets = {f"n{place}": row["de"].split() for place, row in enumerate(rows)}
    known = {word: place for place, word in enumerate(words(folder, range(300)))}
    labels = torch.full((6, 9), -100)
    for place, said in enumerate(inner):
        ids = [known[word] for word in [*targets[said[2]][:8], "</s>"]]
        labels[place, : len(ids)] = torch.tensor(ids)
    shifted = T5ForConditionalGeneration(T5Config(**small("t5")))._shift_right(labels)
    mask = batch.decoder_attention_mask
    assert torch.equal(batch.decoder_input_ids[mask], shifted[:, : mask.shape[1]][mask])


def test_a_start_token_may_stand_in_the_generation_settings(text: str, tmp_path: Path) -> None:
    config = {key: value for key, value in small("t5").items() if key != "decoder_start_token_id"}
    folder = model(tmp_path / "model", config, "$A </s>")
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        calibrated(folder, "encoder-decoder", text)
    (folder / "generation_config.json").write_text('{"decoder_start_token_id": 5, "bos_token_id": 6}')
    batch = calibrated(folder, "encoder-decoder", text).batch
    assert batch.decoder_input_ids is not None
    assert set(batch.decoder_input_ids[:, 0].tolist()) == {5}


@pytest.mark.long
def test_tokens_are_the_same_again_in_another_process(text: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", small("llama"), "<s> $A")
    here = calibrated(folder, "decoder", text)
    code = f"""
from tests.steps.test_calibration import calibrated
from pathlib import Path
found = calibrated(Path({str(folder)!r}), "decoder", {text!r})
print(found.sha256, found.text_sha256)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [here.sha256, here.text_sha256]


def test_tokens_are_the_same_again_of_any_order_of_the_file(text: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", small("llama"), "<s> $A")
    here = calibrated(folder, "decoder", text)
    # The hash of the passages that are read: of those that come first.
    ordered = in_order(0)
    read = [hashlib.sha256("\x1e".join(ordered[:count]).encode()).hexdigest() for count in range(1, 60)]
    assert here.text_sha256 in read
    backwards = written(tmp_path / "b.jsonl", [{"passage": passage} for passage in reversed(passages(60))])
    again = calibrated(folder, "decoder", backwards)
    assert (again.sha256, again.text_sha256) == (here.sha256, here.text_sha256)
    other = calibrated(folder, "decoder", text, seed=1)
    assert other.sha256 != here.sha256 and other.text_sha256 != here.text_sha256


def test_the_hash_is_of_every_part_and_of_nothing_else(text: str, tmp_path: Path) -> None:
    found = calibrated(model(tmp_path / "model", small("t5"), "$A </s>"), "encoder-decoder", text)
    digest = hashlib.sha256()
    for name, tensor in vars(found.batch).items():
        packing = "<?" if tensor.dtype == torch.bool else "<q"
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(b"".join(struct.pack(packing, value) for value in tensor.flatten().tolist()))
    assert digest.hexdigest() == found.sha256
    for name, tensor in vars(found.batch).items():
        changed = tensor.clone()
        changed[0, 0] = not tensor[0, 0] if tensor.dtype == torch.bool else tensor[0, 0] + 1
        assert fingerprint(replace(found.batch, **{name: changed})) != found.sha256


@pytest.mark.parametrize(
    ("model_type", "changes", "limit"),
    [
        ("llama", {}, 64),
        ("gpt2", {}, 64),
        ("mpt", {}, 64),
        ("bert", {}, 64),
        ("bert", {"max_position_embeddings": 4096}, LENGTH),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("bloom", {}, LENGTH),
        ("t5", {"n_positions": 512}, LENGTH),
        ("bart", {}, 64),
    ],
)
def test_the_default_length_is_what_the_model_takes(model_type: str, changes: dict[str, Any], limit: int) -> None:
    config = small(model_type, **changes)
    assert resolve_length(DEFAULT, config) == limit
    if limit < LENGTH:
        longer = Calibration("path:x", length=limit + 1)
        with pytest.raises(UserError) as caught:
            resolve_length(longer, config)
        assert model_type in caught.value.message and f"at most {limit}" in caught.value.message
        assert resolve_length(Calibration("path:x", length=limit), config) == limit


def test_too_little_text_says_how_much_there_is_and_is_needed(text: str, tmp_path: Path) -> None:
    decoder = model(tmp_path / "llama", small("llama"), "<s> $A")
    count = sum(len(passage.split()) for passage in passages(60))
    with pytest.raises(SourceError, match=rf"{text}: too little text: {count:,} tokens, where 100 samples need 1,500"):
        calibrated(decoder, "decoder", text, samples=100)
    encoder = model(tmp_path / "bert", small("bert"), CLS)
    with pytest.raises(SourceError, match=r"60 passages of .* where 61 samples need a passage each"):
        calibrated(encoder, "encoder", text, samples=61)
    assert calibrated(encoder, "encoder", text, samples=60).batch.input_ids.shape[0] == 60
    short = written(tmp_path / "short.jsonl", [{"passage": "cat"}])
    with pytest.raises(SourceError, match="0 passages") as caught:
        calibrated(model(tmp_path / "t5", small("t5"), "$A </s>"), "encoder-decoder", short, samples=1)
    assert caught.value.hint == "name a longer text"
    empty = written(tmp_path / "empty.jsonl", [{"passage": " "}])
    with pytest.raises(SourceError, match="holds no text"):
        calibrated(decoder, "decoder", empty)


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", small("bert"), CLS)
    rows = [{"passage": said, "answer": "no"} for said in (*passages(5), *passages(3), "")]
    found = calibrated(folder, "encoder", written(tmp_path / "t.jsonl", rows), target="answer")
    assert "1 empty texts left out" in found.notes and "3 repeated texts left out" in found.notes
    assert any("'answer' not read" in note for note in found.notes)


def test_what_cannot_be_calibrated_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="whisper cannot be calibrated block by block: it reads audio"):
        calibrated(model(tmp_path / "whisper", small("whisper"), "$A"), "encoder-decoder", text)
    with pytest.raises(UserError, match="4 samples of 2 tokens"):
        calibrated(model(tmp_path / "bert", small("bert"), CLS), "encoder", text, length=2)
    with pytest.raises(UserError, match="0 samples"):
        calibrated(tmp_path / "bert", "encoder", text, samples=0)
    with pytest.raises(UserError, match="`target` without `field`"):
        calibrated(model(tmp_path / "t5", small("t5"), "$A </s>"), "encoder-decoder", text, field=None, target="x")


def test_what_is_trained_on_is_as_much_as_there_is(text: str, tmp_path: Path) -> None:
    """A decoder's windows up to the end of the text, an encoder's passages up to the last."""
    cache = sources.Cache(tmp_path / "cache")
    for kind, family in (("llama", "decoder"), ("bert", "encoder")):
        folder = model(tmp_path / kind, small(kind), CLS if family == "encoder" else "$A")
        asked = Calibration(text, 10_000, 16, field="passage")
        with pytest.raises(SourceError, match="too little text"):
            tokens(folder, family, asked, cache)
        found = tokens(folder, family, asked, cache, training=True)
        few = tokens(folder, family, Calibration(text, 4, 16, field="passage"), cache)
        assert torch.equal(found.batch.input_ids[:4, : few.batch.input_ids.shape[1]], few.batch.input_ids)
        if family == "encoder":
            assert len(found.batch.input_ids) == 60
        whole = sum(len(passage.split()) for passage in passages(60))
        assert found.tokens > whole - 16 if family == "decoder" else found.tokens > 60
