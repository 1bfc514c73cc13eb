"""Tiny masked language models with tokenizers whose words have several pieces, and the slow obvious way to score them."""

from pathlib import Path
from typing import Any

import torch

from tests.conftest import WORDS

_SPECIAL = {"pad": "<pad>", "mask": "<mask>", "cls": "<s>", "sep": "</s>", "unk": "<unk>"}


def save(folder: Path, model_type: str) -> Path:
    """A random BERT with WordPiece, or a random RoBERTa with byte-level BPE, sure enough of itself to tell texts apart."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    tokenizer = _byte_level() if model_type == "roberta" else _word_piece()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        max_position_embeddings=66,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
        **sizes,
    )
    torch.manual_seed(5)
    model = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _word_piece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = [chr(code) for code in range(33, 127)]
    pieces = [*_SPECIAL.values(), *WORDS[:8], *letters, *(f"##{letter}" for letter in letters), "##at", "##use", "ho"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _framed(core)


def _byte_level() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=285, special_tokens=list(_SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return _framed(core)


def _framed(core: Any) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ends = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    core.post_processor = TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends)
    named = {f"{name}_token": token for name, token in _SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **named)


class Slow:
    """One token masked at a time, one text at a time, all logits computed."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        self.model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def words(self, ids: list[int]) -> list[int]:
        """The word of each token of a text of plain words, by the spelling of the pieces."""
        pieces, found = self.tokenizer.convert_ids_to_tokens(ids), []
        wordpiece = any(name.startswith("##") for name in self.tokenizer.get_vocab())
        for before, piece in zip(["", *pieces], pieces, strict=False):
            inside = piece.startswith("##") if wordpiece else piece[0] not in "ĠĊ<" and before != "Ċ"
            found.append((found[-1] if found else 0) + (not inside))
        # A text's first word has no mark of its beginning.
        if not wordpiece:
            found = [number + (place > 0) for place, number in enumerate(found)]
        return found

    def log_likelihoods(self, ids: list[int], places: list[int], within_words: bool = True) -> list[float]:
        """log p of the tokens at these places of an input with its special tokens."""
        words, found = self.words(ids), []
        for place in places:
            hidden = [
                other
                for other in range(place, len(ids))
                if other == place or (within_words and words[other] == words[place])
            ]
            masked = [self.tokenizer.mask_token_id if other in hidden else token for other, token in enumerate(ids)]
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([masked])).logits[0, place].double()
            found.append(float(torch.log_softmax(logits, dim=-1)[ids[place]]))
        return found

    def continuation(self, context: str, continuation: str, within_words: bool = True) -> list[float]:
        """Those of a continuation that begins with a space, or of a whole text."""
        ids = self.tokenizer(context + continuation)["input_ids"]
        before = len(self.tokenizer(context, add_special_tokens=False)["input_ids"])
        return self.log_likelihoods(ids, list(range(1 + before, len(ids) - 1)), within_words)
