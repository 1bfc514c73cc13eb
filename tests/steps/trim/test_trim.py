"""A trimmed model says of what it keeps what it said before, and stock transformers loads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, ByT5Tokenizer, RobertaConfig, RobertaModel

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError, UserError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.topology import NO_TEXT
from sparsebench.steps.registry import single
from sparsebench.steps.trim import companions, weights
from sparsebench.steps.trim.vocabulary import Vocabulary
from tests.making import make
from tests.models.model_zoo import CONFIGS, EXPERT_TYPES
from tests.models.replaying import written
from tests.steps.trim.tiny import LEARNED, MODELS, OTHER, TEXT, bert, byte_fallback, llama, step_of, t5, trimmed


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path, Any]:
    """The kind of tokenizer, a model, the same without what TEXT does not use, and the evidence."""
    build, family, _ = MODELS[request.param]
    place = tmp_path_factory.mktemp(request.param)
    dense = build(place / "dense")
    evidence = trimmed(dense, place / "trimmed", family)
    return request.param, dense, place / "trimmed", evidence


def loaded(folder: Path, kind: str) -> tuple[Any, Any]:
    model, info = getattr(transformers, MODELS[kind][2]).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"]
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def edit(path: Path, **changes: Any) -> None:
    """Change what a JSON file says."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


USUAL = ("bart", "bert", "electra", "gpt2", "llama", "mixtral", "roberta", "t5")
"""One of each way to hold a vocabulary; the other types are looked at in the long tests."""
TYPES = [
    kind if kind in USUAL else pytest.param(kind, marks=pytest.mark.long)
    for kind in sorted(CONFIGS)
    if kind not in NO_TEXT
]
FLOAT32 = (*EXPERT_TYPES, "xglm")
"""Types whose experts, or whose mask, torch calculates in float32 and not in float64."""


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_says_of_the_tokens_that_stay_what_it_said(kind: str, tmp_path: Path) -> None:
    """The rows of a vocabulary drawn at random, and those that config.json names."""
    folder, family = written(kind, tmp_path / "model")
    size, drawn = 96, torch.Generator().manual_seed(2)
    named = {row for row in companions.named_ids(folder) if row < size}
    rows = sorted(named | set(torch.randperm(size, generator=drawn)[:40].tolist()))
    new = {old: number for number, old in enumerate(rows)}
    with weights.begin_trimmed(folder, family, rows, tmp_path / "cut") as writer:
        companions.rewrite_companions(writer.partial, new, len(rows), {})
        writer.close({})
    words = torch.tensor([row for row in rows if row not in named])
    ids = words[torch.randint(len(words), (3, 12), generator=drawn)]
    said = []
    for place, read in ((folder, ids), (tmp_path / "cut", ids.clone().apply_(new.__getitem__))):
        model: Any = load_model(place, family)
        model = model.float() if kind in FLOAT32 else model.double()
        given = {"input_ids": read} | ({"decoder_input_ids": read[:, :7]} if family == "encoder-decoder" else {})
        with torch.no_grad():
            said.append(model(**given)[0])
    whole = said[0][..., torch.tensor(rows)] if said[0].shape[-1] == size else said[0]
    assert family == "encoder" or said[1].shape[-1] == len(rows)
    torch.testing.assert_close(whole, said[1], rtol=0, atol=1e-5 if kind in FLOAT32 else 1e-6)


def test_outputs_on_kept_tokens_are_the_same(pair: tuple[str, Path, Path, Any]) -> None:
    kind, dense, folder, _ = pair
    (model, tokenizer), (small, other) = loaded(dense, kind), loaded(folder, kind)
    names = sorted(other.get_vocab(), key=other.get_vocab().__getitem__)
    rows = torch.tensor(tokenizer.convert_tokens_to_ids(names))
    assert len(names) == small.config.vocab_size < model.config.vocab_size
    for text in TEXT:
        assert tokenizer.tokenize(text) == other.tokenize(text)
        logits = []
        for each, read in ((model, tokenizer), (small, other)):
            given = read(text, return_tensors="pt")
            extra = {"decoder_input_ids": given["input_ids"]} if kind == "unigram" else {}
            with torch.inference_mode():
                logits.append(each(**given, **extra).logits)
        assert logits[1].shape[-1] == len(names)
        torch.testing.assert_close(logits[0][..., rows], logits[1], rtol=0, atol=1e-6)


def test_the_file_is_smaller_by_the_tokens(pair: tuple[str, Path, Path, Any]) -> None:
    _, dense, folder, evidence = pair
    before, after = Checkpoint(dense), Checkpoint(folder)
    old, new = before.config["vocab_size"], after.config["vocab_size"]
    per_token = sum(
        info.nbytes // old for info in before.tensors.values() if old in info.shape and "position" not in info.name
    )
    cut = sum(info.nbytes for info in before.tensors.values()) - sum(info.nbytes for info in after.tensors.values())
    assert cut == per_token * (old - new) > 0
    assert evidence.parameters == sum(info.numel for info in after.tensors.values() if info.name not in after.ties)
    assert f"{new:,} of " in evidence.note and "the same as before" in evidence.note


def test_ids_are_those_of_the_new_tokens_everywhere(pair: tuple[str, Path, Path, Any]) -> None:
    _, dense, folder, _ = pair
    old, new = (AutoTokenizer.from_pretrained(one) for one in (dense, folder))
    for name in ("config.json", "generation_config.json"):
        if not (dense / name).is_file():
            continue
        before, after = (json.loads((one / name).read_text()) for one in (dense, folder))
        keys = [key for key, value in before.items() if key.endswith("_token_id") and value is not None]
        assert keys
        for key in keys:
            assert old.convert_ids_to_tokens(before[key]) == new.convert_ids_to_tokens(after[key])
    assert old.all_special_tokens == new.all_special_tokens
    assert not (folder / "vocab.txt").exists()


def test_any_other_text_can_still_be_written(pair: tuple[str, Path, Path, Any]) -> None:
    _, dense, folder, _ = pair
    old, new = (AutoTokenizer.from_pretrained(one) for one in (dense, folder))
    for text in [*OTHER, *LEARNED]:
        assert len(new.tokenize(text)) > len(old.tokenize(text))
        if new.unk_token:
            assert new.unk_token not in new.tokenize(text)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (old, new)]
        assert old.decode(ids[0]).replace(" ", "") == new.decode(ids[1]).replace(" ", "")


@pytest.mark.parametrize("kind", MODELS)
def test_rarer_tokens_go_and_what_that_costs_is_told(kind: str, tmp_path: Path) -> None:
    build, family, _ = MODELS[kind]
    dense = build(tmp_path / "dense")
    sizes = []
    for least in (1, 3):
        evidence = trimmed(dense, tmp_path / str(least), family, LEARNED[:4], min_count=least)
        sizes.append(Checkpoint(tmp_path / str(least)).config["vocab_size"])
        assert ("more than before" in evidence.note) == (least == 3)
    assert sizes[1] < sizes[0]


def test_without_single_characters_only_what_the_text_needs_stays(tmp_path: Path) -> None:
    dense = bert(tmp_path / "dense")
    trimmed(dense, tmp_path / "whole", "encoder", ["the dog"])
    trimmed(dense, tmp_path / "bare", "encoder", ["the dog"], characters=False)
    whole, bare = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("whole", "bare"))
    assert set(bare.get_vocab()) < set(whole.get_vocab())
    assert bare.tokenize("the dog") == whole.tokenize("the dog")
    assert bare.tokenize("zq") == [bare.unk_token] or "z" not in whole.get_vocab()


def test_a_list_of_tokens_decides(tmp_path: Path) -> None:
    dense = llama(tmp_path / "dense", tied=False)
    names = tmp_path / "tokens.txt"
    names.write_text("Ġriver\nĠhouse\n", encoding="utf-8")
    step_of("trim", "list", dense, tmp_path / "out", "decoder", file=str(names))
    found = AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("the river, the house")
    assert {"Ġriver", "Ġhouse"} <= set(found) and "Ġthe" not in found
    made = Checkpoint(tmp_path / "out")
    assert made.tensors["lm_head.weight"].shape[0] == made.config["vocab_size"]  # a head of its own is cut too
    names.write_text("Ġriver\nĠlighthouse\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokens.txt:2.*Ġlighthouse"):
        step_of("trim", "list", dense, tmp_path / "wrong", "decoder", file=str(names))
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("verb", "name", "settings"),
    [
        ("prune", "magnitude", {"sparsity": 0.5}),
        ("quantize", "int8", {}),
        ("shrink", "l2", {"keep": 0.5, "of": "neurons"}),
    ],
)
def test_a_chain_in_either_order_gives_the_same_model(
    verb: str, name: str, settings: Any, pair: tuple[str, Path, Path, Any], tmp_path: Path
) -> None:
    kind, dense, trimmed_first, _ = pair
    family, outputs = MODELS[kind][1], []
    step_of(verb, name, trimmed_first, tmp_path / "there", family, **settings)
    step_of(verb, name, dense, tmp_path / "first", family, **settings)
    trimmed(tmp_path / "first", tmp_path / "back", family)
    for folder in (tmp_path / "there", tmp_path / "back"):
        model: Any = load_model(folder, family)
        given = load_tokenizer(folder)(TEXT[1], return_tensors="pt")
        extra = {"decoder_input_ids": given["input_ids"]} if kind == "unigram" else {}
        with torch.inference_mode():
            outputs.append(model(**given, **extra)[0])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)


def test_bytes_write_what_no_token_does(tmp_path: Path) -> None:
    """BPE with byte fallback, as Llama 2 has it: bytes and the merges on the way stay; rare characters are written in bytes."""
    dense = byte_fallback(tmp_path / "dense")
    evidence = trimmed(dense, tmp_path / "out", "decoder", [*TEXT, "naïve 雪"])
    assert "the same as before" in evidence.note
    trimmed(dense, tmp_path / "bare", "decoder", characters=False)
    old, new, bare = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("dense", "out", "bare"))
    assert len(bare.get_vocab()) < len(new.get_vocab()) < len(old.get_vocab())
    fallback = {f"<0x{byte:02X}>" for byte in range(256)}
    for tokenizer in (new, bare):
        assert fallback <= set(tokenizer.get_vocab())
        for text in [*TEXT, *OTHER, *LEARNED, "naïve 雪 🙂"]:
            tokens = tokenizer.tokenize(text)
            assert tokenizer.unk_token not in tokens
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text
    assert {*"雪".encode()} <= {int(token[3:5], 16) for token in new.tokenize("雪") if token in fallback}


def test_an_added_token_behind_the_last_row_stays_behind_it(tmp_path: Path) -> None:
    """As Gemma 3's text models have it: their tokenizer knows a token for images, for which the model has no row."""
    dense = llama(tmp_path / "dense")
    tokenizer = load_tokenizer(dense)
    rows = Checkpoint(dense).config["vocab_size"]
    tokenizer.add_tokens([f"<image {number}>" for number in range(rows - len(tokenizer) + 1)], special_tokens=True)
    tokenizer.save_pretrained(dense)
    last = tokenizer.convert_ids_to_tokens(rows)
    trimmed(dense, tmp_path / "out", "decoder")
    made, after = Checkpoint(tmp_path / "out").config["vocab_size"], load_tokenizer(tmp_path / "out")
    assert made < rows and after.convert_tokens_to_ids(last) == made == len(after) - 1
    model = load_model(tmp_path / "out", "decoder")
    assert model.get_input_embeddings().weight.shape[0] == made
    assert after(TEXT[0])["input_ids"] and max(after(TEXT[0])["input_ids"]) < made
    with pytest.raises(SparsebenchError, match=f"a token has the id {rows}, and the model {rows} rows"):
        trimmed(dense, tmp_path / "none", "decoder", [f"{TEXT[0]} {last}"])


def test_positions_behind_the_padding_token_keep_their_numbers(tmp_path: Path) -> None:
    """RoBERTa's positions begin at the padding token's number and one: that number must not change."""
    source = bert(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = "[PAD]"
    moved = tokenizer.convert_tokens_to_ids("[MASK]")
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=moved, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path / "roberta"
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trimmed(folder, tmp_path / "out", "encoder")
    results = []
    for one in (folder, tmp_path / "out"):
        given = AutoTokenizer.from_pretrained(one)(TEXT[0], return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            results.append(load_model(one, "encoder")(**given)[0])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_tokenizers_that_cannot_be_rewritten_are_named(tmp_path: Path) -> None:
    dense = t5(tmp_path / "dense")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (dense / file).unlink()
    ByT5Tokenizer().save_pretrained(dense)
    with pytest.raises(SparsebenchError, match="tokenizer"):
        trimmed(dense, tmp_path / "out", "encoder-decoder")
    (dense / "vocab.txt").write_text("a")  # passes for a tokenizer
    with pytest.raises(UnsupportedError, match=r"ByT5Tokenizer has no tokenizer\.json"):
        trimmed(dense, tmp_path / "out", "encoder-decoder")


def test_a_configuration_that_names_a_token_that_is_none_is_refused(tmp_path: Path) -> None:
    dense = llama(tmp_path / "dense")
    edit(dense / "generation_config.json", pad_token_id=100_000)
    with pytest.raises(SparsebenchError, match="pad_token_id names token id 100000"):
        trimmed(dense, tmp_path / "out", "decoder")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_adds_a_token_that_is_none_is_refused(tmp_path: Path) -> None:
    dense = bert(tmp_path / "dense")
    path, known = dense / "tokenizer.json", load_tokenizer(dense).get_vocab()
    edit(path, post_processor={"type": "BertProcessing", "sep": ["[SEP]", 50_300], "cls": ["[CLS]", 2]})
    vocabulary = Vocabulary(path, json.loads(path.read_text()), known, frozenset())
    with pytest.raises(ModelError, match="post_processor names token id 50300, which the tokenizer does not have"):
        vocabulary.closure([], True)


def test_the_token_for_padding_stays_the_same(tmp_path: Path) -> None:
    dense = llama(tmp_path / "dense")
    vocabulary = json.loads((dense / "tokenizer.json").read_text())["model"]["vocab"]
    token, old_id = max(vocabulary.items(), key=lambda entry: int(entry[1]))
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
    edit(dense / "tokenizer.json", padding=padding | {"pad_id": old_id, "pad_token": token})
    trimmed(dense, tmp_path / "out", "decoder")
    made = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert made["padding"]["pad_id"] == made["model"]["vocab"][token] < old_id


def test_a_bias_and_a_position_are_no_tokens(tmp_path: Path) -> None:
    dense = llama(tmp_path / "dense")
    given = {"sequence_bias": [[[1, 2], 5], [[300], 470]], "forced_decoder_ids": [[471, 300], [472, None]]}
    edit(dense / "generation_config.json", **given)
    trimmed(dense, tmp_path / "out", "decoder")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    ids = [ids for ids, _ in made["sequence_bias"]]
    assert ids[0] == [1, 2] and ids[1] != [300]
    assert [bias for _, bias in made["sequence_bias"]] == [5, 470]
    assert made["forced_decoder_ids"] == [[471, ids[1][0]], [472, None]]


def test_a_field_of_the_default_text_is_read(tmp_path: Path) -> None:
    corpus = tmp_path / "text.jsonl"
    corpus.write_text(json.dumps({"question": TEXT[0], "passage": OTHER[0]}))
    dense, own = llama(tmp_path / "dense"), single("trim", "corpus", field="question")
    found = make(dense, "decoder", {own: tmp_path / "out"}, fetch_file=lambda source: corpus)
    assert found[own].note == trimmed(dense, tmp_path / "wanted", "decoder", TEXT[:1]).note
