"""Pseudo-log-likelihoods under a masked language model: each token masked in turn, scored given all others.

The pseudo-log-likelihood of a text is Σ log p(token | every other token) (Salazar et al. 2020). The pieces of a word
give each other away, so that long rare words come out likely. The correction within words ("word-l2r", Kauf & Ivanova
2023) therefore also masks the pieces to the right of a token in its own word.

Imported only to score: torch is heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from sparsebench.benchmarks.batching import BatchSize, tokens_at_once
from sparsebench.benchmarks.contract import LogLikelihood, Progress
from sparsebench.errors import BenchmarkError, UnsupportedError
from sparsebench.models.files.text import longest_input, special_tokens

METHOD = "word-l2r"
"""The correction within words, by its authors' name."""
BATCH_TOKENS = 1024
"""Tokens in a batch of masked copies."""
BATCH_ROWS = 64
"""Most copies in a batch on a CPU: this bounds the memory for logits over the vocabulary."""


@dataclass(frozen=True)
class PllText:
    """A text as the model sees it, special tokens included; positions ``begin`` to ``end`` (exclusive) are scored.

    ``words`` holds the number of each token's word. ``cut_tokens`` at the beginning did not fit.
    """

    ids: tuple[int, ...]
    words: tuple[int, ...]
    begin: int
    end: int
    cut_tokens: int = 0

    def masked_positions(self, position: int) -> range:
        """Return the positions that are masked when the token at ``position`` is scored."""
        last = position + 1
        while last < self.end and self.words[last] == self.words[position]:
            last += 1
        return range(position, last)


class TokenizedText(NamedTuple):
    """The ``ids`` of a text's tokens, the number of each one's word, and each one's end in the text."""

    ids: list[int]
    words: list[int]
    ends: list[int]


class PllTokenizer:
    """A tokenizer that makes PllText for a model's longest input.

    Raises UnsupportedError when the tokenizer has no mask token, or is a slow one, which gives no offsets.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        name = type(tokenizer).__name__
        if tokenizer.mask_token_id is None:
            raise UnsupportedError(f"{name} has no mask token", "the tokenizer's files are not a masked model's")
        if not tokenizer.is_fast:
            raise UnsupportedError(f"{name} does not say where its tokens stand in a text", "add its tokenizer.json")
        self.tokenizer = tokenizer
        self.before, self.after = special_tokens(tokenizer)
        self.longest = min(int(tokenizer.model_max_length), longest_input(config) or int(tokenizer.model_max_length))

    @property
    def room(self) -> int:
        """The most tokens that a text may have besides the special ones."""
        return self.longest - len(self.before) - len(self.after)

    def tokens(self, text: str) -> TokenizedText:
        """Return a text's tokens without special ones.

        Words are what the tokenizer splits a text into before it makes tokens. A word never continues across a space.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoded["offset_mapping"]]
        words: list[int] = []
        previous_word, previous_end = None, 0
        for word, end in zip(encoded.word_ids(), ends, strict=True):
            is_new = word is None or word != previous_word or text[previous_end:end][:1].isspace()
            words.append(words[-1] + is_new if words else 0)
            previous_word, previous_end = word, end
        return TokenizedText(list(encoded["input_ids"]), words, ends)

    def continuation(self, context: str, continuation: str) -> PllText:
        """Return a text of which only ``continuation`` is scored; a context that is too long loses its beginning.

        Without a context the text begins without a space. Raises BenchmarkError when the continuation has no token, or
        more than fit.
        """
        text = context + continuation if context else continuation.lstrip()
        ids, words, ends = self.tokens(text)
        begin = next((token for token, end in enumerate(ends) if end > len(context)), len(ids))
        cut = max(0, len(ids) - self.room)
        if begin == len(ids) or begin < cut:
            problem = "has no token" if begin == len(ids) else f"has more than {self.room} tokens"
            raise BenchmarkError(f"the continuation {continuation[:60]!r} {problem}", "choose another task")
        return self.framed(ids[cut:], words[cut:], begin - cut, cut)

    def framed(self, ids: Sequence[int], words: Sequence[int], begin: int = 0, cut_tokens: int = 0) -> PllText:
        """Return the tokens between the special ones, scored from ``begin`` on."""
        return PllText(
            ids=(*self.before, *ids, *self.after),
            words=(*[-1] * len(self.before), *words, *[-1] * len(self.after)),
            begin=len(self.before) + begin,
            end=len(self.before) + len(ids),
            cut_tokens=cut_tokens,
        )


@dataclass
class PllScorer:
    """A model with a masked-language-model head, and the size of its batches.

    A batch has ``batch_size`` masked copies, or at most BATCH_ROWS with BATCH_TOKENS tokens in all (on a GPU, as many as
    fit into its memory).
    """

    model: Any
    tokenizer: Any
    batch_size: int | None = None

    def __post_init__(self) -> None:
        self.batch_tokens = tokens_at_once(self.model, BATCH_TOKENS)
        # On a CPU BATCH_ROWS bounds the memory for logits; a GPU's number of tokens already takes theirs into account.
        on_gpu = self.model.device.type == "cuda"
        self.first_rows = self.batch_size or (self.batch_tokens if on_gpu else BATCH_ROWS)
        self.batch = BatchSize(self.first_rows, is_fixed=self.batch_size is not None)

    @property
    def protocol(self) -> dict[str, str | int | float]:
        """The fields of a record on how likelihoods were computed."""
        return {
            "likelihood": f"pseudo, {METHOD}",
            "softmax_dtype": "float32",
            "batch_size": self.batch_size
            or (f"{self.batch_tokens} tokens" if self.batch.most_rows == self.first_rows else self.batch.most_rows),
        }

    def score(self, texts: Sequence[PllText], progress: Progress | None = None) -> list[list[LogLikelihood]]:
        """Return the answer for each scored token of each text, in order. Equal texts are scored once.

        Weights and logits are in the model's precision, the softmax in float32. The head sees scored tokens only.
        """
        distinct = list(dict.fromkeys(texts))
        by_text: dict[PllText, list[LogLikelihood]] = {text: [] for text in distinct}
        total, done = sum(text.end - text.begin for text in distinct), 0
        for batch in self._batches(sorted(distinct, key=lambda text: -len(text.ids))):
            for part, answers in self.batch.parts(batch, self._answers):
                for (text, _), answer in zip(part, answers, strict=True):
                    by_text[text].append(answer)
                done += len(part)
                if progress:
                    progress(done, total)
        return [by_text[text] for text in texts]

    def _batches(self, texts: Sequence[PllText]) -> Iterator[list[tuple[PllText, int]]]:
        """Yield batches of (text, position that is scored), one pair per masked copy, longest texts first."""
        batch: list[tuple[PllText, int]] = []
        for text in texts:
            for position in range(text.begin, text.end):
                batch.append((text, position))
                fitting = max(1, min(self.first_rows, self.batch_tokens // len(batch[0][0].ids)))
                if len(batch) >= (self.batch_size or fitting):
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _answers(self, batch: Sequence[tuple[PllText, int]]) -> list[LogLikelihood]:
        width = len(batch[0][0].ids)
        device = self.model.device
        ids = torch.full((len(batch), width), self.tokenizer.pad_token_id or 0, device="cpu")
        attention_mask = torch.zeros((len(batch), width), dtype=torch.long, device="cpu")
        for row, (text, position) in enumerate(batch):
            ids[row, : len(text.ids)] = torch.tensor(text.ids, device="cpu")
            attention_mask[row, : len(text.ids)] = 1
            masked = text.masked_positions(position)
            ids[row, masked.start : masked.stop] = self.tokenizer.mask_token_id
        positions = torch.tensor([position for _, position in batch], device=device)
        logits = self._logits(ids.to(device), attention_mask.to(device), positions).float()
        targets = torch.tensor([text.ids[position] for text, position in batch], device=device).unsqueeze(1)
        log_likelihoods = F.log_softmax(logits, dim=-1).gather(1, targets).squeeze(1)
        is_greedy = logits.gather(1, targets).squeeze(1) >= logits.amax(dim=-1)
        return list(zip(log_likelihoods.tolist(), is_greedy.tolist(), strict=True))

    def _logits(self, ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return logits (rows, vocabulary) at one position of each row: the head sees those hidden states alone."""
        rows = torch.arange(len(ids), device=ids.device)

        def only_chosen(module: torch.nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0][rows, positions].unsqueeze(1)
            if isinstance(output, tuple):
                return (hidden, *output[1:])
            output.last_hidden_state = hidden
            return output

        with self.model.base_model.register_forward_hook(only_chosen), torch.inference_mode():
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=attention_mask).logits
        if logits.shape[:2] != (len(ids), 1):
            raise UnsupportedError(f"{type(self.model).__name__}: its head does not take hidden states one by one")
        return logits[:, 0]
