"""lm-eval's Hugging Face model with a leaner inner loop. Imported only to score: lm-eval and torch are heavy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from sparsebench.benchmarks import batching, prefixes
from sparsebench.benchmarks.batching import BatchSize
from sparsebench.benchmarks.contract import LogLikelihood, Progress
from sparsebench.benchmarks.prefixes import TokenIds
from sparsebench.errors import BenchmarkError, UnsupportedError

Request = tuple[Any, list[int], list[int]]
"""lm-eval's request: (the texts it was made from, context tokens, continuation tokens)."""
RequestsByInput = dict[TokenIds, list[tuple[int, list[int]]]]
"""For each distinct input the requests it answers: (position among the requests, continuation tokens)."""

RESERVED_TOKENS = 512
"""Tokens that a GPU's memory is reserved for per input of a stock batch."""
_PROBED_INPUTS = 4
"""Number of inputs on which a model is tested for sharing tokens."""
_MODEL_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""Errors that a model's own code may raise when its inputs are a tree."""


class CausalScorer(HFLM):
    """Stock HFLM; with ``shares_prefixes`` it skips what no answer needs.

    Without ``shares_prefixes`` the loop is stock's own, and so is every bit. With it, output logits are computed at
    continuation tokens only, and a beginning that inputs have in common is computed once, in batches of our own. Log-likelihoods
    then differ from stock's only by the rounding that stock itself shows between batch sizes. A model that cannot share
    tokens is recognised on the first inputs and scored in stock's batches; ``sharing`` says so. Encoder-decoders use
    the stock loop too: all their logits are needed.

    A GPU may take larger batches than ``usual_batch_size`` unless the model ``keeps_batch_size``.
    """

    progress: Progress | None = None
    sharing = "off: not asked for"
    notes: Mapping[str, str | int | float] = {}
    _sharing_is_right = False

    # Without **kwargs: HFLM takes any, and so a misspelt option would do nothing.
    def __init__(
        self,
        *,
        pretrained: PreTrainedModel,
        tokenizer: Any,
        backend: Literal["causal", "seq2seq"],
        batch_size: int,
        max_length: int | None = None,
        softmax_dtype: str | None = None,
        trust_remote_code: bool = False,
        shares_prefixes: bool = False,
        keeps_batch_size: bool = False,
    ) -> None:
        super().__init__(
            pretrained=pretrained,
            tokenizer=tokenizer,
            backend=backend,
            batch_size=batch_size,
            max_length=max_length,
            softmax_dtype=softmax_dtype,
            trust_remote_code=trust_remote_code,
        )
        self.usual_batch_size = batch_size
        self.shares_prefixes, self.keeps_batch_size = shares_prefixes, keeps_batch_size

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """Run stock's method without its progress bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Run stock's method in batches of ``usual_batch_size``, whatever an earlier task has noted or halved."""
        self.notes, self.batch_size_per_gpu = {}, self.usual_batch_size
        return super().generate_until(requests, disable_tqdm=True)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._advance(len(inps))
        return super()._model_call(inps, *args, **kwargs)

    def _advance(self, rows: int) -> None:
        self.done += rows
        if self.progress:
            self.progress(self.done, max(self.done, self.total))

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[LogLikelihood]:
        for _, context, continuation in requests:  # lm-eval's loop only asserts this
            if not context or not 0 < len(continuation) <= self.max_length:
                raise BenchmarkError(
                    f"an answer of {len(continuation)} tokens behind {len(context)}: it must have 1 to {self.max_length}",
                    "leave the document out, or shorten its answer",
                )
        self.done, self.total = 0, len(requests)
        can_share = self.backend == "causal" and self.model.get_output_embeddings() is not None
        if self.shares_prefixes and not can_share:
            self.sharing = "off: lm-eval's own loop"
        # Unless the number is the user's, a GPU takes as many as fit.
        gpu_rows = (
            0 if self.keeps_batch_size or override_bs else batching.tokens_at_once(self.model, 0) // RESERVED_TOKENS
        )
        batch = BatchSize(override_bs or max(self.usual_batch_size, gpu_rows), is_fixed=self.keeps_batch_size)
        if not self.shares_prefixes or not can_share:
            return self._stock(requests, batch)
        by_input: RequestsByInput = {}
        for number, (_, context, continuation) in enumerate(requests):
            # Answers of one token share their input, as in stock's logits cache.
            row = tuple((context + continuation)[-(self.max_length + 1) :][:-1])
            by_input.setdefault(row, []).append((number, continuation))
        self.total = len(by_input)
        results: list[LogLikelihood] = [(0.0, False)] * len(requests)
        trees = self._trees(by_input) if override_bs is None else []
        unshared = set(by_input).difference(*trees)
        for rows in _stock_batches(unshared, batch.most_rows):
            for number, answer in self._answers_in_batches(rows, by_input, False, batch).items():
                results[number] = answer
            self._advance(len(rows))
        largest = max(map(len, trees), default=1)
        tree_batch = BatchSize(largest)
        for rows in trees:
            answers = self._answers_in_batches(rows, by_input, True, tree_batch)
            if not all(math.isfinite(likelihood) for likelihood, _ in answers.values()):
                # An overflow in one input would spoil those that share a token with it.
                for stock_rows in _stock_batches(rows, batch.most_rows):
                    answers |= self._answers_in_batches(stock_rows, by_input, False, batch)
            for number, answer in answers.items():
                results[number] = answer
            self._advance(len(rows))
        self._note_batch_size(batch)
        if tree_batch.most_rows < largest:
            self.notes = {**self.notes, "prefix_batch_size": tree_batch.most_rows}
        return results

    def _stock(self, requests: list[Request], batch: BatchSize) -> list[LogLikelihood]:
        """Run stock's own loop; when memory runs out, begin again with batches of half the size."""
        while True:
            self.done, self.batch_size_per_gpu = 0, batch.most_rows
            try:
                answers: list[LogLikelihood] = super()._loglikelihood_tokens(requests, disable_tqdm=True)
            except (RuntimeError, MemoryError) as error:
                batch.halve(batch.most_rows, error)
            else:
                self._note_batch_size(batch)
                return answers
            batching.release_memory()

    def _answers_in_batches(
        self, rows: list[TokenIds], by_input: RequestsByInput, as_tree: bool, batch: BatchSize
    ) -> dict[int, LogLikelihood]:
        answers: dict[int, LogLikelihood] = {}
        for _, part_answers in batch.parts(rows, lambda part: dict(self._answers(list(part), by_input, as_tree))):
            answers |= part_answers
        return answers

    def _note_batch_size(self, batch: BatchSize) -> None:
        self.notes = {} if batch.most_rows == self.usual_batch_size else {"batch_size": batch.most_rows}

    def _trees(self, by_input: RequestsByInput) -> list[list[TokenIds]]:
        """Return the batches of inputs that share tokens; none if the model cannot, and ``sharing`` then says why."""
        limit = min(self.max_length, (prefixes.longest_without_window(self.model) or self.max_length) + 1)
        nodes = batching.tokens_at_once(self.model, prefixes.NODES)
        batches = prefixes.tree_batches((row for row in by_input if len(row) < limit), self.max_length, nodes)
        problem = prefixes.tree_problem(self.model) if batches else f"all inputs have {limit} tokens or more"
        if not problem and not self._sharing_is_right:
            probe = max(batches, key=len)[:_PROBED_INPUTS]
            problem = self._sharing_problem(probe, by_input)
            self._sharing_is_right = not problem and len(probe) > 1
        if problem:
            self.sharing = f"off: {problem}"
            return []
        unshared = len(by_input) - sum(map(len, batches))
        self.sharing = (
            f"on, but for {unshared} of {len(by_input)} inputs, of {limit} tokens or more" if unshared else "on"
        )
        return batches

    def _sharing_problem(self, rows: list[TokenIds], by_input: RequestsByInput) -> str | None:
        """Return what goes wrong when these inputs share tokens; None when their logits only round differently.

        In bfloat16, rounding moves a 135M Llama's logits by up to 0.4% (relative L2). Ignored positions or masks move
        them by 7 to 60%.
        """
        lengths = [_longest_continuation(by_input[row]) for row in rows]
        try:
            tree_logits = self._logits(rows, lengths, True).float()
        except UnsupportedError as error:
            return error.message
        except _MODEL_ERRORS as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        stock_logits = self._logits(rows, lengths, False).float()
        distance = float((tree_logits - stock_logits).norm() / stock_logits.norm())
        if distance <= max(1e-4, 4 * torch.finfo(self.model.dtype).eps):
            return None
        return f"the logits of {len(rows)} inputs move by {distance:.1e} (relative L2)"

    def _answers(
        self, rows: list[TokenIds], by_input: RequestsByInput, as_tree: bool
    ) -> Iterator[tuple[int, LogLikelihood]]:
        """Yield (position among the requests, answer) for every request that these inputs answer."""
        lengths = [_longest_continuation(by_input[row]) for row in rows]
        logits = self._logits(rows, lengths, as_tree)
        log_probabilities = F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        greedy = logits.argmax(dim=-1)
        end = 0
        for row, count in zip(rows, lengths, strict=True):
            end += count
            for number, continuation in by_input[row]:
                targets = torch.tensor(continuation, device=logits.device)
                begin = end - len(continuation)
                likelihood = log_probabilities[begin:end].gather(1, targets.unsqueeze(1)).sum()
                yield number, (float(likelihood), bool((greedy[begin:end] == targets).all()))

    def _logits(self, rows: list[TokenIds], lengths: list[int], as_tree: bool) -> torch.Tensor:
        """Return logits (sum of ``lengths``, vocabulary) at the last ``lengths[i]`` tokens of each row ``i``, in order."""
        if as_tree:
            tree = prefixes.Tree(rows, self.device)
            positions = [node for path, count in zip(tree.paths, lengths, strict=True) for node in path[-count:]]
            return self._logits_at(positions, lambda: prefixes.tree_logits(self.model, tree))
        width = max(map(len, rows))
        batch = torch.zeros((len(rows), width), dtype=torch.long, device="cpu")
        for number, row in enumerate(rows):
            batch[number, : len(row)] = torch.tensor(row, dtype=torch.long, device="cpu")
        ends = [number * width + len(row) for number, row in enumerate(rows)]
        positions = [number for end, count in zip(ends, lengths, strict=True) for number in range(end - count, end)]
        return self._logits_at(positions, lambda: super(CausalScorer, self)._model_call(batch.to(self.device)))

    def _logits_at(self, positions: list[int], forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what ``forward`` gives with the output head called only at these positions of the flattened batch."""
        head: Any = self.model.get_output_embeddings()
        chosen_positions = torch.tensor(positions, device=self.device)

        def only_chosen(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = args[0]
            return (hidden.reshape(-1, hidden.shape[-1])[chosen_positions].unsqueeze(0), *args[1:])

        with head.register_forward_pre_hook(only_chosen):
            logits = forward()
        if logits.shape[:2] != (1, len(chosen_positions)):
            raise BenchmarkError(
                f"{type(self.model).__name__} calls its output head in an unknown way: logits cannot be limited to answers",
                "give the task a `batch`, which uses lm-eval's stock loop; and please report the model type",
            )
        return logits[0]


def _stock_batches(rows: Sequence[TokenIds] | set[TokenIds], size: int) -> list[list[TokenIds]]:
    """Return batches in stock's order: long inputs first, equally long ones by their tokens."""
    order = sorted(rows, key=lambda row: (-len(row), row))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _longest_continuation(requests: list[tuple[int, list[int]]]) -> int:
    return max(len(continuation) for _, continuation in requests)
