"""Comparing what a model writes with accepted answers: exact match, F1 over words, edit distance to the nearest answer.

The model gets an input and decodes greedily until it ends its output or reaches MOST_NEW_TOKENS tokens. No answers are
ranked and no part of one is given, so one wrong token can spoil all that follow it. A decoder's answer is the first line that
it writes after the input. It reads the tokens that all inputs begin with, such as examples, only once.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import takewhile, zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from sparsebench import sources
from sparsebench.benchmarks import cmudict, hashes, own, squad
from sparsebench.benchmarks.batching import BatchSize, tokens_at_once
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import DAMAGED, Outcome, Progress, ScoreResult, TaskSpec, drawn, task_protocol
from sparsebench.benchmarks.statistics import ratio
from sparsebench.errors import BenchmarkError
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.models.files.families import cache_name
from sparsebench.models.files.text import longest_input

MOST_NEW_TOKENS = 32
"""Most new tokens, the end included, if a task has no length. CMUdict's longest pronunciation has 28 phonemes."""
RESERVED_TOKENS = 512
"""Tokens, of an input and its output together, that a GPU's memory is reserved for per sequence."""
BATCH_SIZE = 64
"""Inputs decoded together. All have the same length, so no padding can change a number."""

FEWEST_SHARED = 64
"""A common beginning of all inputs is read once for all of them only if it has more tokens than this."""

EDIT_METRICS = ("per", "word_error_rate")
"""Metrics that count the edits between output and answer; all others measure their similarity, from 0 to 1."""
METRIC_LIBRARIES = {"rouge_l": "rouge_score", "chrf": "sacrebleu"}
"""The package that computes a metric, for those that we do not compute ourselves."""

_TOKEN_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
"""The settings of generation_config.json that say what a text begins and ends with."""
_WORD = re.compile(r"[^\W_]+")

Symbols = tuple[str, ...]


@dataclass(frozen=True)
class GenerationExample:
    """An input and every output that counts as right, each a sequence of symbols.

    ``context`` is a text, such as a passage, that several documents may share.
    """

    text: str
    answers: tuple[Symbols, ...]
    context: str = ""


class GeneratedText(NamedTuple):
    """What a model wrote for an input, and whether it ended of itself within the tokens that it was allowed."""

    symbols: Symbols
    ended: bool


class Generation:
    """One encoder-decoder or decoder, for any number of generation tasks. Tasks with the same inputs share outputs."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, batch_size: int | None = None, progress: Progress | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        # Greedy is what the model finds likeliest: without penalties, forced ends or forbidden words of its own settings.
        settings = model.generation_config
        self.greedy = GenerationConfig(**{key: getattr(settings, key, None) for key in _TOKEN_SETTINGS})
        # On a GPU, as many rows of RESERVED_TOKENS tokens as fit into its memory.
        rows = batch_size or max(BATCH_SIZE, tokens_at_once(model, 0) // RESERVED_TOKENS)
        self.batch = BatchSize(rows, is_fixed=batch_size is not None)
        self.progress = progress
        self._documents: dict[tuple[tuple[str, ...], ...], list[GenerationExample]] = {}
        self._generated: dict[tuple[int, tuple[str, ...]], list[GeneratedText]] = {}

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score one task.

        An outcome is the best similarity to an answer (1 or 0 for ``exact_match``). For ``per`` and ``word_error_rate``
        it is the number of edits to the nearest answer. Its label is then the first answer's length: a label must not
        depend on what a model writes. Raises BenchmarkError when the model's logits are not finite, or an input is too
        long.
        """
        task = spec.required_benchmark
        most_new_tokens, data_key = task.tokens or MOST_NEW_TOKENS, (task.data, task.fields)
        if data_key not in self._documents:
            self._documents[data_key] = questions(spec, cache) if spec.own else documents(task, cache)
        all_examples = self._documents[data_key]
        numbers, examples = drawn(all_examples, spec.limit)
        texts = tuple(example.text for example in examples)
        if (most_new_tokens, texts) not in self._generated:
            self._generated[most_new_tokens, texts] = self.generate(texts, most_new_tokens)
        outputs = self._generated[most_new_tokens, texts]
        values, lengths = metric_values(task, examples, [output.symbols for output in outputs])
        return ScoreResult.of(
            task,
            (
                # A word of CMUdict is its own id; two questions may have the same text.
                Outcome(
                    str(number) if task.form else document.text,
                    hashes.of_prompt(document.text),
                    value,
                    label,
                    hashes.of_context(document.context) if document.context else None,
                )
                for number, document, value, label in zip_longest(numbers, examples, values, lengths)
            ),
            available=len(all_examples),
            chance=0.0 if task.chance == "open" else None,
            scored=ratio(values, lengths or [1.0] * len(values)),
            protocol=self._protocol(task, examples, most_new_tokens)
            | {"documents": len(all_examples), "cut_off": sum(not output.ended for output in outputs)},
        )

    def _protocol(
        self, task: Benchmark, examples: Sequence[GenerationExample], most_new_tokens: int
    ) -> dict[str, str | int | float]:
        library = METRIC_LIBRARIES.get(task.metric)
        return {
            **task_protocol(task, f"sparsebench generation, transformers {version('transformers')}"),
            **({"metric": f"{library} {version(library)}"} if library else {}),
            "split": "" if task.form else f"test, seed {cmudict.SEED}",
            "documents_sha256": hashlib.sha256(repr(examples).encode()).hexdigest(),
            "decoding": "greedy" if self.model.config.is_encoder_decoder else "greedy, the first line",
            "max_new_tokens": most_new_tokens,
            "batch_size": self.batch.most_rows,
            "dtype": dtype_name(self.model.dtype),
        }

    def generate(self, texts: Sequence[str], most_new_tokens: int = MOST_NEW_TOKENS) -> list[GeneratedText]:
        """Return the model's output for each text, in symbols (the decoded text, split at whitespace).

        Raises BenchmarkError when an input, a decoder's with ``most_new_tokens``, is longer than the model takes.
        """
        rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
        model_limit = longest_input(self.model.config.to_dict())
        new_tokens = 0 if self.model.config.is_encoder_decoder else most_new_tokens
        for number, row in enumerate(rows):
            if model_limit and len(row) + new_tokens > model_limit:
                raise BenchmarkError(
                    f"generation: the input {texts[number][:40]!r}… has {len(row):,} tokens, which with {new_tokens} new "
                    f"ones are more than the model's {model_limit:,}",
                    "shorten it, or leave the record out",
                )
        shared = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
        prefix_cache = None if self.model.config.is_encoder_decoder else self._read_prefix([same[0] for same in shared])
        by_length: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            by_length.setdefault(len(row), []).append(number)
        outputs = [GeneratedText((), False)] * len(rows)
        done = 0
        for length in sorted(by_length, reverse=True):

            def run(numbers: Sequence[int]) -> list[GeneratedText]:
                input_ids = torch.tensor([rows[number] for number in numbers], device=self.model.device)
                return self._generate_batch(input_ids, most_new_tokens, prefix_cache)

            for number, output in self.batch.each(by_length[length], run):
                outputs[number] = output
                done += 1
                if self.progress:
                    self.progress(done, len(rows))
        return outputs

    @contextmanager
    def _greedy_model(self) -> Iterator[None]:
        """Have the model decode greedily during the block. Other tasks of the job find its own settings again."""
        usual = self.model.generation_config
        self.model.generation_config = self.greedy
        try:
            yield
        finally:
            self.model.generation_config = usual

    def _read_prefix(self, tokens: list[int]) -> Any:
        """Return a decoder's key-value cache of the tokens that all inputs begin with.

        None if they are too few to save time, or if the model's cache is of a kind that cannot be shared.
        """
        cache = DynamicCache(config=self.model.config)
        plain = all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers)
        # An input's last token is always read.
        if len(tokens) <= FEWEST_SHARED or not plain:
            return None
        with torch.inference_mode():
            input_ids = torch.tensor([tokens[:-1]], device=self.model.device)
            self.model(input_ids=input_ids, use_cache=True, **{cache_name(self.model): cache})
        return cache

    def _generate_batch(self, input_ids: torch.Tensor, most_new_tokens: int, prefix_cache: Any) -> list[GeneratedText]:
        """Return greedy continuations of ``input_ids`` (batch, length); ``prefix_cache`` caches its first tokens, or is None."""
        is_encoder_decoder = bool(self.model.config.is_encoder_decoder)
        # An encoder-decoder's output begins with its start token.
        length = 1 if is_encoder_decoder else input_ids.shape[1]

        def refuse_non_finite(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            # A forced first token has set all others to -inf.
            if not bool(torch.isfinite(scores.amax(-1)).all()):
                raise BenchmarkError("generation: the model's logits are not finite", DAMAGED)
            return scores

        def has_line_break(ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            texts = self.tokenizer.batch_decode(ids[:, length:])
            return torch.tensor(["\n" in text for text in texts], device=ids.device)

        options: dict[str, Any] = {} if is_encoder_decoder else {"stopping_criteria": [has_line_break]}
        if prefix_cache is not None:
            copied = options[cache_name(self.model)] = copy.deepcopy(prefix_cache)
            copied.batch_repeat_interleave(len(input_ids))
        with torch.inference_mode(), self._greedy_model():
            generated = self.model.generate(  # type: ignore[operator]
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=most_new_tokens,
                num_beams=1,
                do_sample=False,
                logits_processor=[refuse_non_finite],
                **options,
            )
        new = generated[:, length:]
        end_tokens = self.greedy.eos_token_id
        end_tokens = {*end_tokens} if isinstance(end_tokens, list) else {end_tokens}
        outputs = []
        for ids, text in zip(new.tolist(), self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            line, newline, _ = (text, "", "") if is_encoder_decoder else text.partition("\n")
            outputs.append(GeneratedText(tuple(line.split()), bool(newline) or not end_tokens.isdisjoint(ids)))
        return outputs


def questions(spec: TaskSpec, cache: sources.Cache) -> list[GenerationExample]:
    """Read the user's own inputs, each with one answer or a list. Raises BenchmarkError for a value that is no text."""
    task, path = spec.required_benchmark, spec.own.fetch(cache) if spec.own else Path()
    examples = []
    for number, (text, target) in enumerate(own.records(task.name, path, task.fields), 1):
        answers = target if isinstance(target, list) else [target]
        for column, value in ((task.fields[0], text), *((task.fields[1], answer) for answer in answers or [None])):
            if not own.has_text(value):
                raise own.unusable(task.name, number, column, value, "a text")
        examples.append(GenerationExample(text, tuple(tuple(answer.split()) for answer in answers)))
    return examples


def documents(task: Benchmark, cache: sources.Cache) -> list[GenerationExample]:
    """Return SQuAD's questions, or the words of CMUdict's test part."""
    path = Path(sources.fetch(sources.parse(task.data[0]), cache))
    if task.form == "squad":
        return [
            GenerationExample(prompt, tuple(map(squad.words, answers)), passage)
            for prompt, answers, passage in squad.read(path)
        ]
    return [GenerationExample(word.spelling, word.pronunciations) for word in cmudict.split(cmudict.read(path), "test")]


def metric_values(
    task: Benchmark, examples: Sequence[GenerationExample], outputs: Sequence[Symbols]
) -> tuple[list[float], list[float]]:
    """Return each output's value by the task's metric, and for EDIT_METRICS the lengths of first answers (else none)."""
    if task.form == "squad":
        outputs = [squad.words(" ".join(symbols)) for symbols in outputs]
    pairs = list(zip(examples, outputs, strict=True))
    if task.metric in EDIT_METRICS:
        edits = [
            float(min(edit_distance(symbols, answer) for answer in document.answers)) for document, symbols in pairs
        ]
        return edits, [float(len(document.answers[0])) for document in examples]
    similarity = similarity_of(task.metric)
    return [max(similarity(symbols, answer) for answer in document.answers) for document, symbols in pairs], []


def similarity_of(metric: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    """Return the function that gives the similarity of an output (first) to an answer (second), from 0 to 1.

    ``f1`` is SQuAD's, over words normalised as SQuAD does; ``rouge_l`` is rouge_score's F-measure, without stemming,
    over words of any script; ``chrf`` is sacrebleu's sentence-level chrF2 divided by 100. Any other metric is exact match.
    """
    if metric == "f1":
        return lambda output, answer: squad.f1(squad.words(" ".join(output)), squad.words(" ".join(answer)))
    if metric == "rouge_l":
        from rouge_score.rouge_scorer import RougeScorer

        # rouge_score's own tokenizer keeps a to z and digits alone.
        rouge = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=lambda text: _WORD.findall(text.lower())))
        return lambda output, answer: float(rouge.score(" ".join(answer), " ".join(output))["rougeL"].fmeasure)
    if metric == "chrf":
        from sacrebleu.metrics import CHRF

        chrf = CHRF()
        return lambda output, answer: float(chrf.sentence_score(" ".join(output), [" ".join(answer)]).score) / 100
    return lambda output, answer: float(output == answer)


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the Levenshtein distance: the fewest insertions, deletions and substitutions that make one the other."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
