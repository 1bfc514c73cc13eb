"""lm-eval's Hugging Face model with a leaner inner loop. Imported only to score: lm-eval and torch are heavy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM

from sparsebench.benchmarks.contract import Progress
from sparsebench.errors import BenchmarkError

Request = tuple[Any, list[int], list[int]]
"""lm-eval's: (what it was made from, context tokens, continuation tokens)."""


class Scorer(HFLM):
    """Stock HFLM, except that output logits are computed at continuation tokens only.

    Batches, order, padding and precision are stock's, and so are the log-likelihoods: the output head and its softmax
    over the vocabulary work row by row. (To the bit in bfloat16 where it was measured; in float32 a matrix product of
    fewer rows may round the last bit differently.) Encoder-decoders take the stock loop: all their logits are needed.
    """

    progress: Progress | None = None

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Stock, without its bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._advance(len(inps))
        return super()._model_call(inps, *args, **kwargs)

    def _advance(self, rows: int) -> None:
        self.done += rows
        if self.progress:
            self.progress(self.done, max(self.done, self.total))

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self.done, self.total = 0, len(requests)
        head = self.model.get_output_embeddings()
        if self.backend != "causal" or head is None:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        inputs: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for position, (_, context, continuation) in enumerate(requests):
            # Answers of one token share their input, as in stock's logits cache.
            tokens = tuple((context + continuation)[-(self.max_length + 1) :][:-1])
            inputs.setdefault(tokens, []).append((position, continuation))
        order = sorted(inputs, key=lambda tokens: (-len(tokens), tokens))
        self.total = len(order)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        size = override_bs or int(self.batch_size)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            longest = [max(len(continuation) for _, continuation in inputs[row]) for row in rows]
            logits = self._continuation_logits(head, rows, longest)
            chances = F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
            greedy = logits.argmax(dim=-1)
            end = 0
            for row, kept in zip(rows, longest, strict=True):
                end += kept
                for position, continuation in inputs[row]:
                    wanted = torch.tensor(continuation, device=logits.device)
                    begin = end - len(continuation)
                    likelihood = chances[begin:end].gather(1, wanted.unsqueeze(1)).sum()
                    results[position] = (float(likelihood), bool((greedy[begin:end] == wanted).all()))
        return results

    def _continuation_logits(self, head: Any, rows: list[tuple[int, ...]], kept: list[int]) -> torch.Tensor:
        """Logits (sum of ``kept``, vocabulary) at the last ``kept[i]`` tokens of each row, in order."""
        width = len(rows[0])
        batch = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            batch[place, : len(row)] = torch.tensor(row, dtype=torch.long)
        ends = [place * width + len(row) for place, row in enumerate(rows)]
        chosen = torch.cat([torch.arange(end - count, end) for end, count in zip(ends, kept, strict=True)])
        chosen = chosen.to(self.device)

        def only_chosen(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = args[0]
            return (hidden.reshape(-1, hidden.shape[-1])[chosen].unsqueeze(0), *args[1:])

        hook = head.register_forward_pre_hook(only_chosen)
        try:
            logits = self._model_call(batch.to(self.device))
        finally:
            hook.remove()
        if logits.shape[:2] != (1, len(chosen)):
            raise BenchmarkError(
                f"{type(self.model).__name__} does not call its output head on hidden states, as its kin do",
                "report the model type: it needs lm-eval's stock loop",
            )
        return logits[0]
