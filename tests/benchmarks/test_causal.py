"""The lean loop against stock HFLM: the same log-likelihoods, up to a matrix product's rounding."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench.models.load import load_model, load_tokenizer
from tests.benchmarks.conftest import sentence


def requests(n: int, longest: int) -> list[Any]:
    """(context, continuation) pairs: shared contexts, answers of one token and of many, some too long for the model."""
    draw = random.Random(0)
    pairs = []
    for place in range(n):
        context = sentence(draw, 1, longest)
        answers = ["cat", "dog"] if place % 3 == 0 else [sentence(draw, 1, 12) for _ in range(3)]
        pairs += [SimpleNamespace(args=(context, " " + answer)) for answer in answers]
    return pairs


def both(folder: Path, family: Any, backend: str, dtype: str, batch: int) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    from sparsebench.benchmarks.causal import Scorer

    model, tokenizer = load_model(folder, family, dtype), load_tokenizer(folder)
    asked = requests(14, 90 if family == "decoder" else 20)
    scorers = (
        cls(pretrained=model, tokenizer=tokenizer, backend=backend, batch_size=batch, max_length=60)
        for cls in (Scorer, HFLM)
    )
    lean, stock = (scorer.loglikelihood(asked, disable_tqdm=True) for scorer in scorers)
    return lean, stock


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 2**-8)])
@pytest.mark.parametrize("batch", [1, 5, 16])
def test_decoder_is_stock(tiny_llama: Path, dtype: str, rounding: float, batch: int):
    lean, stock = both(tiny_llama, "decoder", "causal", dtype, batch)
    assert [likelihood for likelihood, _ in lean] == pytest.approx(
        [likelihood for likelihood, _ in stock], rel=rounding
    )
    assert [greedy for _, greedy in lean] == [greedy for _, greedy in stock]
    assert len({likelihood for likelihood, _ in lean}) > 20


def test_encoder_decoder_is_stock(tiny_t5: Path):
    lean, stock = both(tiny_t5, "encoder-decoder", "seq2seq", "float32", 5)
    assert lean == stock


def test_the_head_sees_continuation_tokens_only(tiny_llama: Path):
    from sparsebench.benchmarks.causal import Scorer

    model = load_model(tiny_llama, "decoder")
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    scorer = Scorer(pretrained=model, tokenizer=load_tokenizer(tiny_llama), backend="causal", batch_size=4)
    asked = [SimpleNamespace(args=("the cat sat on", " mat mat")), SimpleNamespace(args=("a", " dog ran on it"))]
    scorer.loglikelihood(asked)
    assert seen == [2 + 4]


def test_a_head_that_is_not_called_is_noticed(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    from sparsebench.benchmarks.causal import Scorer
    from sparsebench.errors import BenchmarkError

    model = load_model(tiny_llama, "decoder")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: torch.nn.Linear(2, 2))
    scorer = Scorer(pretrained=model, tokenizer=load_tokenizer(tiny_llama), backend="causal", batch_size=4)
    with pytest.raises(BenchmarkError, match="output head"):
        scorer.loglikelihood([SimpleNamespace(args=("the cat", " sat"))])
