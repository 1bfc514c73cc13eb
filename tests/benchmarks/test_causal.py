"""The lean loop against stock HFLM: the same log-likelihoods, up to rounding; without sharing, to the bit."""

import math
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench.benchmarks import prefixes
from sparsebench.benchmarks.causal import CausalScorer
from sparsebench.errors import BenchmarkError
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from tests.benchmarks.conftest import sentence
from tests.benchmarks.test_prefixes import GROUPED, make


def requests(n: int, longest: int) -> list[Any]:
    """Shared contexts, answers of one token and of many, some too long for the model."""
    draw = random.Random(0)
    made = []
    for place in range(n):
        context = sentence(draw, 1, longest)
        made += answers(context, *(["cat", "dog"] if place % 3 == 0 else [sentence(draw, 1, 12) for _ in range(3)]))
    return made


def answers(context: str, *given: str) -> list[Any]:
    """Requests for the likelihoods of these answers."""
    return [SimpleNamespace(args=(context, f" {answer}")) for answer in given]


def stock(folder: Path, model: Any, asked: list[Any], batch: int = 4) -> list[Any]:
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(pretrained=model, tokenizer=load_tokenizer(folder), backend="causal", batch_size=batch, max_length=60)
    return list(scorer.loglikelihood(asked, disable_tqdm=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 5, 16])
def test_decoder_is_stock_to_the_bit(tiny_llama: Path, dtype: str, batch: int):
    model, asked = load_model(tiny_llama, "decoder", dtype), requests(14, 90)
    lean = sharing(tiny_llama, model, batch_size=batch, shares_prefixes=False).loglikelihood(asked, disable_tqdm=True)
    assert lean == stock(tiny_llama, model, asked, batch)
    assert len({likelihood for likelihood, _ in lean}) > 20


@pytest.mark.parametrize("tokens", [[], [3] * 61])
def test_an_answer_that_stock_would_not_take_is_refused(tiny_llama: Path, tokens: list[int]) -> None:
    model, tokenizer = load_model(tiny_llama, "decoder"), load_tokenizer(tiny_llama)
    scorer = CausalScorer(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, max_length=60)
    asked = [(("a", "cat"), [5], [7]), (("a", ""), [5], tokens)]
    with pytest.raises(BenchmarkError, match=f"an answer of {len(tokens)} tokens behind 1: it must have 1 to 60"):
        scorer._loglikelihood_tokens(asked)


def test_the_head_sees_continuation_tokens_only(tiny_llama: Path):
    model = load_model(tiny_llama, "decoder")
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    sharing(tiny_llama, model).loglikelihood([*answers("the cat sat on", "mat mat"), *answers("a", "dog ran on it")])
    assert set(seen) == {2 + 4}


def test_a_head_that_is_not_called_is_noticed(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_model(tiny_llama, "decoder")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: torch.nn.Linear(2, 2))
    with pytest.raises(BenchmarkError, match="output head"):
        sharing(tiny_llama, model).loglikelihood(answers("the cat", "sat"))


def sharing(folder: Path, model: Any, **settings: Any) -> Any:
    """A scorer that shares tokens; small batches, so that beginnings are cut between them."""
    options = {"backend": "causal", "batch_size": 4, "max_length": 60, "shares_prefixes": True, **settings}
    return CausalScorer(pretrained=model, tokenizer=load_tokenizer(folder), **options)


def test_trees_that_were_halved_for_want_of_memory_are_recorded(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    asked = answers("the cat sat on a", *(f"{word} mat" for word in ("cat", "dog", "tree", "big", "red")))
    scorer = sharing(tiny_llama, load_model(tiny_llama, "decoder"))
    whole, compute = scorer.loglikelihood(asked), scorer._answers
    assert scorer.sharing == "on" and scorer.notes == {}

    def short(rows: list[Any], asked: Any, together: bool) -> Any:
        if together and len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(rows, asked, together)

    monkeypatch.setattr(scorer, "_answers", short)
    assert_equal(scorer.loglikelihood(asked), whole, {"rel": 1e-5})
    assert scorer.notes == {"prefix_batch_size": 2}


def assert_equal(found: list[Any], known: list[Any], tolerance: dict[str, float]) -> None:
    assert [likelihood for likelihood, _ in found] == pytest.approx(
        [likelihood for likelihood, _ in known], **tolerance
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in known]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", {"abs": 1e-4}), ("bfloat16", {"rel": 2**-7})])
def test_shared_beginnings_change_no_number(
    tiny_llama: Path, dtype: str, tolerance: dict[str, float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prefixes, "NODES", 90)
    asked = requests(14, 90)
    model = load_model(tiny_llama, "decoder", dtype)
    scorer = sharing(tiny_llama, model)
    assert_equal(scorer.loglikelihood(asked), stock(tiny_llama, model, asked), tolerance)
    assert re.fullmatch(r"on, but for [1-9]\d* of \d+ inputs, of 60 tokens or more", scorer.sharing)
    short = [request for request in asked if len(" ".join(request.args).split()) < 50]
    assert_equal(scorer.loglikelihood(short), stock(tiny_llama, model, short), tolerance)
    assert scorer.sharing == "on"


def test_what_an_input_shares_is_computed_once(tiny_llama: Path):
    model = load_model(tiny_llama, "decoder", "float32")
    scorer = sharing(tiny_llama, model)
    asked = answers("the cat sat on the red mat", "dog ran", "dog sat", "tree is in it", "house", "mat")
    scorer.loglikelihood(asked)
    seen: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    steps: list[tuple[int, int]] = []
    scorer.progress = lambda done, total: steps.append((done, total))
    again = scorer.loglikelihood(asked)
    # Seven of the question, "dog", "tree is in"; an answer's last token is no input, so "house" and "mat" add none.
    assert seen == [7 + 1 + 3]
    assert steps == [(3, 3)]
    assert len({likelihood for likelihood, _ in again}) == 5


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "off: its attention is eager, not sdpa"),
        # Its attention is like others' from transformers 5.25 on.
        ("falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, ("off: TypeError", "on")),
        ("lfm2", {**GROUPED, "layer_types": ["conv", "full_attention", "conv"]}, "off: 1 of its 3 layers attend"),
    ],
)
def test_without_sharing_the_score_is_stocks(
    tiny_llama: Path, model_type: str, settings: dict[str, Any], reason: str | tuple[str, ...]
):
    model = make(model_type, **settings)
    asked = requests(6, 30)
    scorer = sharing(tiny_llama, model)
    assert_equal(scorer.loglikelihood(asked), stock(tiny_llama, model, asked), {"rel": 1e-6})
    assert scorer.sharing.startswith(reason)


def test_a_model_that_ignores_positions_is_found_out(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    model = make("llama", **GROUPED)
    forward = model.forward

    def deaf(input_ids: Any, position_ids: Any = None, **options: Any) -> Any:
        return forward(input_ids, **options)

    monkeypatch.setattr(model, "forward", deaf)
    asked = requests(6, 30)
    scorer = sharing(tiny_llama, model)
    assert_equal(scorer.loglikelihood(asked), stock(tiny_llama, model, asked), {"rel": 1e-6})
    assert re.search("off: the logits of 4 inputs move by .*relative L2", scorer.sharing)


def test_inputs_beyond_a_sliding_window_are_computed_apart(tiny_llama: Path):
    model = make("mistral", sliding_window=24, **GROUPED)
    asked = requests(8, 40)
    scorer = sharing(tiny_llama, model)
    assert_equal(scorer.loglikelihood(asked), stock(tiny_llama, model, asked), {"abs": 1e-3})
    assert re.fullmatch(r"on, but for [1-9]\d* of \d+ inputs, of 24 tokens or more", scorer.sharing)
    scorer = sharing(tiny_llama, make("mistral", sliding_window=2, **GROUPED))
    scorer.loglikelihood(asked[:3])
    assert scorer.sharing == "off: all inputs have 2 tokens or more"


def test_a_token_that_overflows_spoils_no_other_input(tiny_llama: Path):
    model, words = load_model(tiny_llama, "decoder", "float32"), load_tokenizer(tiny_llama)
    # "red" comes first in the tree: it is computed with the beginning that the others share.
    asked = [one for place in ("on", "in") for one in answers(f"the cat sat {place}", "red mat", "blue mat", "big mat")]
    scorer = sharing(tiny_llama, model)
    scorer.loglikelihood(asked)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.get_input_embeddings().weight.data[words.convert_tokens_to_ids("red"), 0] = torch.nan
    found, known = scorer.loglikelihood(asked), stock(tiny_llama, model, asked)
    broken = [math.isnan(likelihood) for likelihood, _ in known]
    assert [math.isnan(likelihood) for likelihood, _ in found] == broken
    assert 0 < sum(broken) < len(asked)
