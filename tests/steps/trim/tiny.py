"""Tiny models of three kinds of tokenizer, each learned from a small text with the library that runs it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsebench.steps.contract import StepReport
from sparsebench.steps.registry import single
from tests.making import make

LEARNED = [
    "The cat sat on the mat, and the dog ran to the house by the river.",
    "A small red house stands beneath the tallest tree; nobody lives there any longer.",
    "Sparse models keep fewer weights, and trimmed vocabularies keep fewer tokens!",
    "Where the river bends, the water is slow and the fishermen wait for hours (or days).",
] * 4
TEXT = ["The dog sat by the river.", "A red house, a small cat; nobody ran to the water!"]
OTHER = ["Fishermen keep fewer vocabularies beneath the tree."]


def llama(folder: Path, tied: bool = True) -> Path:
    """A decoder with byte-level BPE; ids 0 to 2 are special, and configurations name them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet)
    core.train_from_iterator(LEARNED, trainer)
    core.add_special_tokens(["<|im_start|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    ends = [2, tokenizer.convert_tokens_to_ids("<|im_start|>")]
    return _decoder(tokenizer, folder, 5, tie_word_embeddings=tied, pad_token_id=0, eos_token_id=ends)


def byte_fallback(folder: Path) -> Path:
    """A decoder with BPE of characters as Llama 2 has it: what no token writes is written in bytes, ``<0x0A>``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    core.train_from_iterator(LEARNED, trainers.BpeTrainer(vocab_size=480, special_tokens=[*special, *bytes_]))
    data = json.loads(core.to_str())
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["content"] in special]
    core = Tokenizer.from_str(json.dumps(data))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return _decoder(tokenizer, folder)


def bert(folder: Path) -> Path:
    """A masked language model with WordPiece: a head with a bias, which is stored under two names."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.train_from_iterator(LEARNED, trainers.WordPieceTrainer(vocab_size=220, special_tokens=special))
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder.mkdir(parents=True)
    core.save(str(folder / "tokenizer.json"))
    words = sorted(core.get_vocab(), key=core.get_vocab().__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer.from_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=len(words), pad_token_id=0,
    )  # fmt: skip
    return _saved(BertForMaskedLM, config, tokenizer, folder)


def t5(folder: Path) -> Path:
    """An encoder-decoder with Unigram: one table for both stacks and the head."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    core.train_from_iterator(
        LEARNED, trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    )
    entries = [(piece, score) for piece, score in json.loads(core.to_str())["model"]["vocab"]]
    tokenizer = T5Tokenizer(vocab=[*entries, ("<extra_id_1>", 0.0), ("<extra_id_0>", 0.0)], extra_ids=2)
    config = T5Config(
        vocab_size=len(tokenizer) + 6, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _saved(T5ForConditionalGeneration, config, tokenizer, folder)


def _decoder(tokenizer: Any, folder: Path, unused: int = 0, **changes: Any) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer) + unused, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        **{"bos_token_id": 1, "eos_token_id": 2, **changes},
    )  # fmt: skip
    return _saved(LlamaForCausalLM, config, tokenizer, folder)


def _saved(kind: Any, config: Any, tokenizer: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MODELS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "bpe": (llama, "decoder", "AutoModelForCausalLM"),
    "wordpiece": (bert, "encoder", "AutoModelForMaskedLM"),
    "unigram": (t5, "encoder-decoder", "AutoModelForSeq2SeqLM"),
}


def step_of(verb: str, name: str, parent: Path, folder: Path, family: str, **given: Any) -> StepReport:
    """One step done to ``parent``; what it fails with is raised."""
    step = single(verb, name, **given)
    report: StepReport = make(parent, family, {step: folder})[step]
    return report


def trimmed(parent: Path, folder: Path, family: str, texts: list[str] = TEXT, **given: Any) -> StepReport:
    """The model with the tokens of ``texts``."""
    source = folder.parent / f"{folder.name}.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return step_of("trim", "corpus", parent, folder, family, source=f"path:{source}", **given)
