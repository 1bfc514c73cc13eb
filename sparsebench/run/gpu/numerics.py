"""Checks that scores and masks are on the device what they are on a CPU."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsebench.models.modules.load import load_model
from sparsebench.run.gpu.bench import Bench, CheckResult
from sparsebench.steps.prune.contract import Layer, Quota, Solution

WORD_COUNT = 90
"""How many words the questions are made of."""


def word_tokenizer(word_count: int) -> Any:
    """Return a tokenizer of the words ``w0``, … and four special tokens: a random model needs no real text."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(word_count))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def scoring(bench: Bench) -> CheckResult:
    """Check that fifty questions get the CPU's log-likelihoods on the device, on a GPU ten times as fast.

    On a CPU, lm-eval's own loop is compared with one that shares what prompts have in common.
    """
    from sparsebench.benchmarks.causal import CausalScorer

    folder, _ = bench.model("llama")
    tokenizer = word_tokenizer(WORD_COUNT)
    prompts = [" ".join(f"w{(7 * n + k) % WORD_COUNT}" for k in range(24)) for n in range(50)]
    pairs = [(prompt, f" w{(n + 5 * k) % WORD_COUNT} w3") for n, prompt in enumerate(prompts) for k in range(4)]
    asked = [SimpleNamespace(args=pair) for pair in pairs]
    answers, seconds = [], []
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model that is loaded already
    for device, share in (("cpu", True), (bench.device, bench.gpu)):
        scorer: Any = CausalScorer(
            pretrained=load_model(folder, "decoder", device=device), tokenizer=tokenizer, backend="causal", batch_size=16,
            trust_remote_code=False,
            softmax_dtype="float32",  # in bfloat16 a sum of two log-likelihoods is rounded to half a percent
            shares_prefixes=share,
        )  # fmt: skip
        scorer.loglikelihood(asked[:1])  # a GPU's first kernels are loaded and chosen meanwhile
        started = time.perf_counter()
        answers.append([value for value, _ in scorer.loglikelihood(asked)])
        seconds.append(time.perf_counter() - started)
    difference = max(abs(a - b) / abs(a) for a, b in zip(*answers, strict=True))
    speedup = seconds[0] / seconds[1]
    return difference <= 0.01 and (not bench.gpu or speedup >= 10), {"relative": difference, "speedup": speedup}


def pruning(bench: Bench) -> CheckResult:
    """Check that SparseGPT prunes the same weights of a layer on the device as on the CPU (on a CPU: as in float64)."""
    rows, width = (2048, 2048) if bench.gpu else (96, 128)
    draw = torch.Generator().manual_seed(0)
    sizes = ((rows, width), (4 * width, width), (width, width))
    weights, inputs, mixing = (torch.randn(*size, generator=draw, device="cpu") for size in sizes)
    inputs = inputs @ mixing
    reference = _sparsegpt(weights, inputs, "cpu", torch.float32 if bench.gpu else torch.float64)
    pruned_here = _sparsegpt(weights, inputs, bench.device, torch.float32)
    same = float(((reference == 0) == (pruned_here == 0)).double().mean())
    errors = [float(((weights - pruned).double() @ inputs.double().T).norm()) for pruned in (reference, pruned_here)]
    excess_error = errors[1] / errors[0] - 1
    return same >= 0.995 and excess_error <= 0.01, {"same": same, "worse": excess_error}


def _sparsegpt(weights: torch.Tensor, inputs: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    from sparsebench.models.replay.gather import InputStatistics
    from sparsebench.steps.prune.methods.sparsegpt import solve

    inputs_there = inputs.to(device, dtype)
    statistics = InputStatistics(len(inputs_there), inputs_there.square().sum(0), inputs_there.T @ inputs_there)
    ((solution,),) = solve([Layer("layer", weights.to(device), 0, statistics)], [Quota(0.5, "layer")], dtype)
    assert isinstance(solution, Solution)
    return solution.weights.cpu()
