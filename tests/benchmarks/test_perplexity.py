"""Perplexity against a plain loop over the stock model, and the protocol's rules one by one."""

import copy
import gzip
import json
import math
import random
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from sparsebench.benchmarks import TaskSpec, all_tasks, scorers
from sparsebench.benchmarks.batching import BatchSize
from sparsebench.benchmarks.contract import mean_stderr, sampled
from sparsebench.benchmarks.perplexity import (
    Divergence,
    bits_per_byte_fields,
    wide_head,
    window_losses,
    windows_of,
)
from sparsebench.benchmarks.running_text import ScoredWindow, perplexity_result, pooled_perplexity
from sparsebench.errors import BenchmarkError
from sparsebench.ledger.scored import compare, rows
from sparsebench.models.files.families import MODEL_TYPES, transformers_config
from sparsebench.models.files.text import load_tokenizer, token_ids
from sparsebench.models.modules.load import load_model
from sparsebench.models.prepare import prepare
from sparsebench.notebook import score
from sparsebench.plan.single import SingleModel
from tests.benchmarks.conftest import run, score_all, sentence, serve_file
from tests.command import call
from tests.models.model_zoo import small
from tests.steps.trim.tiny import llama, step_of
from tests.storage.model_folders import prune

DRAW = random.Random(3)
STORIES = [sentence(DRAW, 30, 90) for _ in range(40)]


def wide_logits(model: Any, shown: torch.Tensor) -> torch.Tensor:
    """(tokens, vocabulary): what a float32 copy of the model makes of the states that the model's own head reads."""
    read: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))
    model(shown)
    hook.remove()
    wide = copy.deepcopy(model).float()
    wide.get_output_embeddings().register_forward_pre_hook(lambda *_: (read[0].float(),))
    logits: torch.Tensor = wide(shown).logits[0]
    return logits


def plain(model: Any, ids: list[int], window: int, before: list[int]) -> list[float]:
    """The mean negative log-likelihood of each whole window, the slow, obvious way."""
    found = []
    room = window - len(before)
    for begin in range(0, len(ids) - room + 1, room):
        shown = torch.tensor([before + ids[begin : begin + room]])
        with torch.no_grad():
            logits = wide_logits(model, shown)
        found.append(float(F.cross_entropy(logits[:-1].double(), shown[0, 1:])))
    return found


@pytest.fixture
def stories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Passages in the place of CoQA's, one of them twice."""
    path = tmp_path / "requests.jsonl.gz"
    rows = [{"doc": {"story": story}} for story in (*STORIES, STORIES[4])]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    serve_file(monkeypatch, path)
    return STORIES


def with_bos(folder: Path, out: Path) -> Path:
    """The model with a tokenizer that puts <s> before a text."""
    from tokenizers import processors

    shutil.copytree(folder, out)
    tokenizer = load_tokenizer(folder)
    single = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = single
    tokenizer.save_pretrained(out)
    return out


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_task_is_a_plain_loop(bos: bool, dtype: str, tiny_llama: Path, stories: list[str], tmp_path: Path) -> None:
    folder = prepare(tiny_llama, tmp_path / "model", "decoder", dtype)
    folder = with_bos(folder, tmp_path / "bos") if bos else folder
    found = run(folder, "decoder", "perplexity")
    model, tokenizer = load_model(folder, "decoder"), load_tokenizer(folder)
    assert str(model.dtype) == f"torch.{dtype}"
    ids = tokenizer("\n\n".join(stories), add_special_tokens=False)["input_ids"]
    wanted = plain(model, ids, 256, [1] if bos else [])
    assert found.score == pytest.approx(math.exp(sum(wanted) / len(wanted)), rel=1e-5)
    assert [o.value / (o.label or 0) for o in found.outcomes] == pytest.approx(wanted, rel=1e-5)
    assert {outcome.label for outcome in found.outcomes} == {255.0}
    assert found.n == len(wanted) == len({outcome.doc_hash for outcome in found.outcomes}) > 5
    assert (found.metric, found.chance, found.limited) == ("perplexity", None, False)
    assert found.score == pytest.approx(math.exp(sum(o.value for o in found.outcomes) / (255 * found.n)), rel=1e-12)
    stride = 255 if bos else 256
    protocol = {"window": 256, "stride": stride, "bos": "<s>" if bos else "none", "passages": len(stories)}
    protocol |= {"dropped_tokens": len(ids) - found.n * stride, "scored_tokens": 255 * found.n}
    protocol |= {"dtype": dtype, "logits_dtype": "float32"}
    assert protocol.items() <= found.protocol.items()
    json.dumps(found.protocol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", [name for name, family in MODEL_TYPES.items() if family == "decoder"])
def test_every_decoder_is_scored_by_the_loop(
    model_type: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsebench.benchmarks.perplexity.CHUNK", 1000)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(transformers_config(small(model_type)), dtype=dtype).eval()
    ids, batch = [5 + (place * 37) % 90 for place in range(100)], BatchSize(3)
    found = window_losses(model, windows_of(ids, 32))
    assert window_losses(model, windows_of(ids, 32), batch=batch) == pytest.approx(found, rel=1e-6)
    assert batch.most_rows == 3
    assert [value / 31 for value in found] == pytest.approx(plain(model, ids, 32, []), rel=1e-5)
    assert len(set(found)) == 3


def test_a_model_of_16_bits_calculates_as_told(tiny_llama: Path, tmp_path: Path, stories: list[str]) -> None:
    wide = tmp_path / "wide"
    load_model(tiny_llama, "decoder", "float32").save_pretrained(wide)
    load_tokenizer(tiny_llama).save_pretrained(wide)
    told, stored = run(tiny_llama, "decoder", "perplexity", dtype="float32"), run(wide, "decoder", "perplexity")
    assert told.outcomes == stored.outcomes
    assert told.protocol["dtype"] == "float32"
    assert told.score != run(tiny_llama, "decoder", "perplexity").score


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_wide_head_is_as_exact_as_float32(dtype: torch.dtype) -> None:
    """Its logits are off by float32's sums alone: float16 is not rounded to bfloat16, as a product that is fast may do."""
    torch.manual_seed(0)
    config = transformers_config(small("llama", hidden_size=256, vocab_size=3001))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    head, states = model.get_output_embeddings(), torch.randn(2, 70, config.hidden_size).to(dtype)
    exact = states.double() @ head.weight.double().T
    with torch.inference_mode(), wide_head(model):
        logits = head(states)
    float32_error = (states.float() @ head.weight.float().T - exact).abs().max()
    assert (logits - exact).abs().max() <= 4 * float32_error
    assert torch.get_float32_matmul_precision() == "highest"


def test_limit_counts_windows(tiny_llama: Path, stories: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    whole = run(tiny_llama, "decoder", "perplexity")
    some = run(tiny_llama, "decoder", "perplexity", limit=3, progress=lambda *done: seen.append(done))
    assert (some.n, some.limited) == (3, True)
    assert some.outcomes == tuple(whole.outcomes[p] for p in sampled(whole.n, 3))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert some.score != whole.score
    assert some.protocol["documents"] == whole.n


def test_perplexity_shares_its_model(tiny_llama: Path, stories: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    original = scorers.load_model
    monkeypatch.setattr(scorers, "load_model", lambda *given: loaded.append(given) or original(*given))
    specs = [TaskSpec("perplexity", limit=2), TaskSpec("no_such_task"), TaskSpec("perplexity", limit=1)]
    found = score_all(tiny_llama, "decoder", specs)
    assert len(loaded) == 1
    assert [getattr(result, "n", None) for result in found] == [2, None, 1]
    assert isinstance(found[1], BenchmarkError)


def test_a_model_that_overflows_is_named(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, "decoder", "float32")
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(BenchmarkError, match="window 1 of 4 is not finite"):
        window_losses(model, windows_of(list(range(40)), 10))


def test_a_likelihood_beyond_a_double_is_named_and_a_huge_one_is_a_number(tiny_llama: Path) -> None:
    with pytest.raises(BenchmarkError, match="is 800 nats a token"):
        pooled_perplexity([8000.0, 8000.0], [10, 10])
    assert math.isfinite(pooled_perplexity([7000.0], [10]))


def of_windows(losses: list[float], tokens: list[int]) -> tuple[float, float]:
    """The perplexity of windows with these losses and tokens, and its standard error."""
    windows = [ScoredWindow(place, [place], *window) for place, window in enumerate(zip(losses, tokens, strict=True))]
    found = perplexity_result(all_tasks()["pseudo_perplexity"], windows, len(windows), {})
    assert found.stderr is not None
    return found.score, found.stderr


def test_a_window_weighs_in_the_standard_error_what_its_tokens_do() -> None:
    draw = random.Random(4)
    tokens = [*[draw.randint(20, 60) for _ in range(80)], 1, 1]
    losses = [count * draw.gauss(2.0, 0.1) for count in tokens[:-2]] + [5.0, 6.0]
    score, stderr = of_windows(losses, tokens)
    pairs, spread = list(zip(losses, tokens, strict=True)), []
    for _ in range(3000):
        values, counts = zip(*draw.choices(pairs, k=len(pairs)), strict=True)
        spread.append(math.exp(sum(values) / sum(counts)))
    assert stderr == pytest.approx(statistics.pstdev(spread), rel=0.1)
    assert stderr < score * mean_stderr([value / count for value, count in pairs]) / 4


def test_the_standard_error_of_one_window_is_unknown(tiny_llama: Path, stories: list[str]) -> None:
    found = run(tiny_llama, "decoder", "perplexity", limit=1)
    assert (found.n, found.stderr) == (1, None)
    (row,) = rows({"perplexity": found}, {"perplexity": found})
    assert [row[name] for name in ("stderr", "low", "high", "p_holm", "verdict")] == [None] * 5


@given(st.integers(0, 90), st.integers(1, 30), st.integers(1, 40) | st.none(), st.integers(0, 1))
def test_windows_hold_the_text_in_order(n: int, size: int, stride: int | None, bos: int) -> None:
    ids, before, room = list(range(n)), [-1] * bos, size - bos
    if size < 2 or n < room:
        with pytest.raises(BenchmarkError, match=f"a text of {n} tokens fills no window of {size}"):
            windows_of(ids, size, stride, before)
        return
    found = windows_of(ids, size, stride, before)
    step = min(stride or room, room)
    assert found.stride == step
    scored: list[int] = []
    for place, (window, start) in enumerate(zip(found.ids, found.first_scored, strict=True)):
        assert list(window) == before + ids[place * step : place * step + room]
        assert found.offsets[place] + bos == place * step
        assert start >= 1
        scored += window[start:]
    # The first text token of a window has nothing before it but for the tokenizer's own token.
    covered = (len(found.ids) - 1) * step + room
    unscored = set() if bos else {place * step for place in range(len(found.ids))} if step == room else {0}
    assert scored == [token for token in range(covered) if token not in unscored]
    assert found.dropped == n - covered < step


def test_tokens_before_a_text_or_a_window_stand_for_no_bytes(tiny_llama: Path) -> None:
    tokenizer, text = load_tokenizer(tiny_llama), " ".join(STORIES[:3])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for prefix in ("text_prefix", "window_prefix"):
        for count in (1, 2):
            windows = windows_of(encoded["input_ids"], 20, stride=9, **{prefix: [1] * count})
            end = encoded["offset_mapping"][-1 - windows.dropped][1]
            assert bits_per_byte_fields(tokenizer, text, windows, [1.0])["scored_bytes"] == len(text[:end].encode())


def test_a_trimmed_model_is_compared_on_windows_of_the_same_tokens(stories: list[str], tmp_path: Path) -> None:
    dense = llama(tmp_path / "dense")
    (tmp_path / "tokens").write_text("Ġriver")
    text = {"source": "path:stories", "field": "doc.story"}  # the fixture serves them for any source
    step_of("trim", "corpus", dense, tmp_path / "own", "decoder", **text)
    step_of("trim", "list", dense, tmp_path / "foreign", "decoder", file=str(tmp_path / "tokens"))
    step_of("trim", "corpus", tmp_path / "own", tmp_path / "twice", "decoder", **text)
    whole, own, foreign, twice = (
        run(tmp_path / name, "decoder", "perplexity") for name in ("dense", "own", "foreign", "twice")
    )
    shown = [[outcome.doc_hash for outcome in found.outcomes] for found in (whole, own, foreign, twice)]
    assert shown[0] == shown[1] == shown[3]
    assert own.protocol["scored_bytes"] == whole.protocol["scored_bytes"]
    # What is left of the vocabulary shares out what the rest had: the same tokens are more probable.
    assert own.score < whole.score and compare(own, whole).n == whole.n
    assert not set(shown[0]) & set(shown[2])
    assert "no document in common" in compare(foreign, whole).method
    assert foreign.protocol["bits_per_byte"] > 0


def test_the_divergence_from_dense_is_of_the_same_pass(tiny_llama: Path, stories: list[str], tmp_path: Path) -> None:
    pruned = prune(tiny_llama, tmp_path / "pruned", 0.5)

    def scored(divergence: bool, dense: Path | None) -> Any:
        (found,) = score_all(pruned, "decoder", [TaskSpec("perplexity", limit=2, divergence=divergence)], dense=dense)
        return found

    alone, beside = scored(False, tiny_llama), scored(True, tiny_llama)
    assert beside.score == alone.score and "divergence" not in alone.protocol
    assert "divergence" not in scored(True, None).protocol, "the dense model itself has none"
    windows = windows_of(token_ids(load_tokenizer(tiny_llama), "\n\n".join(stories)), 256)
    total = same = tokens = 0.0
    models = [load_model(folder, "decoder") for folder in (tiny_llama, pruned)]
    for number in sampled(len(windows.ids), 2):
        shown = torch.tensor([windows.ids[number]])
        with torch.no_grad():
            p, q = (wide_logits(model, shown)[:-1].double().log_softmax(-1) for model in models)
        total += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += len(p)
    assert beside.protocol["divergence"] == pytest.approx(total / tokens, rel=1e-4)
    assert beside.protocol["same_top"] == pytest.approx(same / tokens)


def test_a_pass_is_sized_when_both_models_are_there(
    tiny_llama: Path, stories: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order, load = list[str](), scorers.load_model
    monkeypatch.setattr(scorers, "load_model", lambda *given: order.append("load") or load(*given))
    place = "sparsebench.benchmarks.perplexity.tokens_at_once"
    monkeypatch.setattr(place, lambda _, least: order.append("size") or least)
    score_all(tiny_llama, "decoder", [TaskSpec("perplexity", limit=1, divergence=True)], dense=tiny_llama)
    assert order == ["load", "load", "size"]


def test_a_pass_that_is_made_again_counts_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, dense = load_model(tiny_llama, "decoder", "float32"), load_model(tiny_llama, "decoder", "float32")
    with torch.no_grad():
        pruned.lm_head.weight[::2] = 0
    windows, plain, calls = windows_of(list(range(40)), 10), torch.Tensor.log_softmax, list[int]()
    alone, again = Divergence(dense), Divergence(dense)
    window_losses(pruned, windows, divergence=alone)

    def failing(logits: torch.Tensor, axis: int) -> torch.Tensor:
        calls.append(axis)
        if len(calls) == 3:  # the second window of the first pass
            raise MemoryError
        return plain(logits, axis)

    monkeypatch.setattr(torch.Tensor, "log_softmax", failing)
    batch = BatchSize(4)
    window_losses(pruned, windows, batch=batch, divergence=again)
    assert batch.most_rows == 2 and again.tokens == alone.tokens == 36
    assert again.same == alone.same and again.total == pytest.approx(alone.total, rel=1e-5)


def test_a_manifest_s_divergence_is_scored_against_the_other_model(tiny_llama: Path, tmp_path: Path) -> None:
    pruned, manifest = prune(tiny_llama, tmp_path / "pruned", 0.5), tmp_path / "m.yaml"
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    task = "{task: perplexity, source: 'path:notes.jsonl', length: 64, limit: 3, divergence: true}"
    models = f"models: [{{name: m, source: 'path:{tiny_llama}', family: decoder}}]"
    manifest.write_text(f"version: 1\n{models}\nbenchmarks:\n  decoder: [{task}]\n")
    asked = ("score", pruned, "--manifest", manifest, "--json")
    done = call(*asked, "--against", tiny_llama, cwd=tmp_path)
    (row,) = json.loads(done.stdout)
    assert row["divergence"] > 0 and 0 < row["same_top"] <= 1
    alone = call(*asked, cwd=tmp_path)
    (row,) = json.loads(alone.stdout)
    assert "divergence" not in row and "--against" in alone.stderr


def test_a_notebook_s_divergence_is_that_of_the_task(tiny_llama: Path, stories: list[str], tmp_path: Path) -> None:
    sparse, dense = (
        SingleModel("m", folder, "decoder") for folder in (prune(tiny_llama, tmp_path / "p", 0.5), tiny_llama)
    )
    table = score(sparse, "perplexity", dense, limit=2, divergence=True)
    alone = run(sparse.folder, "decoder", "perplexity", limit=2)
    assert table["divergence"][0] > 0 and table["n"][0] == alone.n
    assert "divergence" not in score(sparse, "perplexity", dense, limit=2)


def test_models_of_two_vocabularies_have_no_divergence() -> None:
    with pytest.raises(BenchmarkError, match="vocabularies of 7 and 8"):
        Divergence(None).add([(torch.zeros(2, 7), torch.zeros(2, 8))])
