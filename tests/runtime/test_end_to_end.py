"""Tiny models of each family under the real engines, at one rank and two; without a compiler, so over plain gloo."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.runtime import LatencyResult, Setting, Workload, all_reduce, measure_latency, measure_memory
from sparsebench.runtime.footprint import footprint
from sparsebench.runtime.group import try_two_ranks
from tests.gpus import H100, Driver
from tests.models.replaying import written
from tests.runtime.conftest import Started
from tests.steps.shrink.making import shrunk

SHORT = Workload(batch=1, prompt=12, generate=4)
PHASES = {
    "encoder": ["load", "forward"],
    "decoder": ["load", "prefill", "decode", "generate"],
    "encoder-decoder": ["load", "encode", "prefill", "decode", "generate"],
}


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")


@pytest.fixture
def models(tiny_llama: Path, tiny_bert: Path, tiny_t5: Path) -> Mapping[str, Path]:
    return {"encoder": tiny_bert, "decoder": tiny_llama, "encoder-decoder": tiny_t5}


def setting(ranks: int, engine: str = "deepspeed", **more: Any) -> Setting:
    return Setting(
        engine, ranks, SHORT, samples=8, threads=1, processes=1, phase_seconds=0.5, timeout_seconds=100, **more
    )


def collected(dense: Path, variants: list[tuple[str, Path]], family: str, how: Setting) -> dict[str, LatencyResult]:
    found: dict[str, LatencyResult] = {}
    measure_latency(dense, variants, family, how, found.__setitem__)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "ranks"),
    [("encoder", 1), *(pytest.param(family, 2, marks=pytest.mark.long) for family in ("decoder", "encoder-decoder"))],
)
def test_latency_of_a_pair(models: Mapping[str, Path], family: str, ranks: int) -> None:
    how = replace(setting(ranks), processes=2)
    same = models[family]
    found = collected(same, [("same", same), ("again", same)][: 3 - ranks], family, how)
    assert list(found) == ["same", "again"][: 3 - ranks]
    for result in found.values():
        assert result.baseline == "paired"
        assert [one.phase for one in result.phases if one.side == "variant"] == PHASES[family]
        assert [one.phase for one in result.differences] == PHASES[family][1:]
        assert all(one.low <= one.ratio <= one.high and one.pairs >= 2 for one in result.differences)
        assert {one.processes for one in result.differences} <= {2, 3}
        assert {one.process for one in result.samples} >= {0, 1}
        assert "address space" in result.placement and result.stolen is not None
        assert result.read_bytes_per_second is not None and 1e8 < result.read_bytes_per_second < 1e13
        assert all(sample.wall_s > 0 for sample in result.samples)
        assert result.parity is not None
        assert result.parity.wraps_only == (ranks == 1)
        assert result.parity.relative_l2 < 1e-5
        assert any("plain gloo" in note for note in result.notes) == (ranks == 2)
        json.dumps(asdict(result), allow_nan=False)


SHRUNK: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "one group of heads": ("llama", {}, {"heads": 2}),
    "one head": ("llama", {"num_key_value_heads": 4}, {"heads": 1}),
    "three heads": ("t5", {}, {"heads": 3}),
    "odd neurons": ("llama", {}, {"neurons": 25}),
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("case", SHRUNK)
def test_a_shrunk_model_whose_heads_two_ranks_cannot_halve_says_the_same(case: str, tmp_path: Path) -> None:
    kind, changes, settings = SHRUNK[case]
    folder, family = written(kind, tmp_path / "model", **changes)
    smaller, _ = shrunk(folder, family, tmp_path / "smaller", "l2", **settings)
    result = collected(smaller, [("same", smaller)], family, setting(2))["same"]
    assert result.parity is not None and not result.parity.wraps_only
    assert result.parity.relative_l2 < 1e-5


@pytest.mark.slow
@pytest.mark.long
def test_bfloat16_weights_that_are_cut_first_are_exact_in_float32(tiny_llama: Path) -> None:
    found = measure_memory(tiny_llama, "decoder", setting(2, dtype="float32"))
    assert found.dtype == "float32"
    assert found.parity is not None
    assert found.parity.relative_l2 < 1e-6
    plain = sum(4 * info.numel for info in Checkpoint(tiny_llama).tensors.values())
    assert all(plain / 3 < row.tensor_bytes < plain for row in found.per_rank)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["decoder", pytest.param("encoder-decoder", marks=pytest.mark.long)])
def test_memory_at_two_ranks_is_shared_out(models: Mapping[str, Path], family: str) -> None:
    found = measure_memory(models[family], family, setting(2))
    rows, names = found.per_rank, PHASES[family]
    assert any("plain gloo: no C++ compiler" in note for note in found.notes)
    assert [phase.phase for phase in found.phases] == names
    assert {(row.rank, row.phase) for row in rows} == {(rank, name) for rank in (0, 1) for name in names}
    for phase in found.phases:
        assert phase.peak_bytes == sum(row.peak_bytes for row in rows if row.phase == phase.phase)
    assert found.peak_bytes == max(phase.peak_bytes for phase in found.phases if phase.phase != "load")
    whole = sum(info.nbytes for info in Checkpoint(models[family]).tensors.values())
    assert all(whole / 3 < row.tensor_bytes < whole for row in rows)
    kept = {(row.rank, row.phase): row.cache_bytes for row in rows}
    assert kept[0, "load"] == 0 < kept[0, "prefill"] < kept[0, "decode"] and kept[0, "generate"] is None
    assert kept[0, "decode"] == kept[1, "decode"]
    json.dumps(asdict(found), allow_nan=False)


def test_the_plain_engine_has_no_parity_to_prove_and_takes_no_thread_settings_of_the_callers(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch prefers MKL_NUM_THREADS: inherited, it gave two ranks two threads each on two cores, and they span."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    found = collected(tiny_bert, [("same", tiny_bert)], "encoder", setting(1, "hf"))["same"]
    assert (found.parity, found.dtype, found.device, found.threads) == (None, "float32", "cpu", 1)


@pytest.mark.slow
@pytest.mark.long
def test_a_family_that_autotp_refuses_itself_is_unsupported(tmp_path: Path) -> None:
    from transformers import XLMConfig, XLMModel

    XLMModel(XLMConfig(vocab_size=64, emb_dim=32, n_layers=2, n_heads=2)).save_pretrained(tmp_path / "xlm")
    with pytest.raises(UnsupportedError, match="AutoTP"):
        measure_memory(tmp_path / "xlm", "encoder", setting(2))


@pytest.mark.long
@pytest.mark.slow
def test_where_a_pair_does_not_fit_each_is_measured_alone(tiny_bert: Path, free_memory: Callable[[int], None]) -> None:
    free_memory(footprint(tiny_bert, setting(1)))
    found = collected(tiny_bert, [("variant", tiny_bert)], "encoder", setting(1))["variant"]
    assert found.baseline == "unpaired"
    assert {sample.side for sample in found.samples} == {"dense", "variant"}
    assert [(one.phase, one.pairs) for one in found.differences] == [("forward", 0)]


def test_a_dense_model_alone_is_loaded_as_the_baseline(
    tiny_bert: Path, no_ranks: None, free_memory: Callable[[int], None]
) -> None:
    """The sparse engine would leave out its zeros otherwise."""
    free_memory(footprint(tiny_bert, setting(1, "sparse")))
    with pytest.raises(Started) as seen:
        collected(tiny_bert, [("variant", tiny_bert)], "encoder", setting(1, "sparse"))
    assert seen.value.args == (True, (str(tiny_bert),))


def test_a_model_that_does_not_fit_is_not_loaded(
    tiny_bert: Path, no_ranks: None, free_memory: Callable[[int], None]
) -> None:
    free_memory(2**20)
    said = f"{tiny_bert.name} needs about 0.7 GiB"
    with pytest.raises(MeasureError, match=said) as caught:
        measure_memory(tiny_bert, "encoder", setting(1))
    assert "sparse engine" in (caught.value.hint or "")
    with pytest.raises(MeasureError, match=said):
        collected(tiny_bert, [("variant", tiny_bert)], "encoder", setting(1))


def test_a_dense_model_that_does_not_fit_is_refused_and_a_variant_fails_alone(
    tiny_bert: Path, no_ranks: None, tmp_path: Path, free_memory: Callable[[int], None]
) -> None:
    large, _ = written("bert", tmp_path / "large", hidden_size=512, intermediate_size=2048)
    outcomes: dict[str, Any] = {}
    variants = [("large", large), ("small", tiny_bert)]
    free_memory(footprint(large, setting(1)) - 1)
    with pytest.raises(MeasureError, match="large needs about"):
        collected(large, [("variant", tiny_bert)], "encoder", setting(1))
    with pytest.raises(Started) as seen:
        measure_latency(tiny_bert, variants, "encoder", setting(1), outcomes.__setitem__)
    assert "large needs about" in outcomes["large"].message
    assert seen.value.args == (False, (str(tiny_bert),))


def test_what_the_first_rank_says_counts_whichever_is_heard_first(
    tiny_bert: Path, replace_ranks: Callable[..., None]
) -> None:
    """Only the first rank tells of the GPUs' state."""
    row = {"phase": "forward", "peak_rss_bytes": 2, "peak_bytes": 1, "anon_bytes": 1, "pss_bytes": 1,
           "tensor_bytes": 1, "baseline_bytes": 1}  # fmt: skip
    facts = {
        "kind": "result",
        "kernel": "k",
        "threads": 1,
        "device": "cuda",
        "dtype": "float32",
        "parity": None,
        "source": "s",
    }
    said = [
        {"rank": rank, "memories": [row | {"rank": rank}], "notes": ["GPU 0: slowed down"] * (rank == 0), **facts}
        for rank in (1, 0)
    ]
    replace_ranks(lambda *_: nullcontext(SimpleNamespace(messages=lambda: said)))
    result = measure_memory(tiny_bert, "encoder", setting(2))
    assert result.notes == ("GPU 0: slowed down",)
    assert [memory.rank for memory in result.per_rank] == [0, 1]


def test_a_model_over_a_gpus_memory_is_refused_with_the_engine_that_offloads(
    tiny_bert: Path, driver: Driver, no_ranks: None
) -> None:
    driver.lists([("GPU-a", H100, "40000"), ("GPU-b", H100, "0")])
    with pytest.raises(MeasureError, match="on each GPU") as caught:
        measure_memory(tiny_bert, "encoder", setting(2))
    assert "deepspeed-zero3" in (caught.value.hint or "")
    with pytest.raises(Started):
        measure_memory(tiny_bert, "encoder", setting(2, "deepspeed-zero3"))
    for device in ("cpu", "cuda"):  # one rank is on the first GPU: what the second holds is nothing to it
        with pytest.raises(Started):
            measure_memory(tiny_bert, "encoder", replace(setting(1), device=device))


def test_more_ranks_than_gpus_are_refused(tiny_bert: Path, driver: Driver, no_ranks: None) -> None:
    driver.lists([("GPU-a", H100, "80000"), ("GPU-b", H100, "80000")])
    with pytest.raises(UnsupportedError, match="4 ranks need 4 GPUs, but device cuda has 2"):
        measure_memory(tiny_bert, "encoder", replace(setting(4), device="cuda"))
    with pytest.raises(UnsupportedError, match="2 ranks need 2 GPUs, but device cuda:1 has 1"):
        measure_memory(tiny_bert, "encoder", replace(setting(2), device="cuda:1"))


@pytest.mark.slow
@pytest.mark.skipif(
    not all(there for _, there, _ in all_reduce.requirements()),
    reason="the shared-memory operation cannot be compiled here",
)
@pytest.mark.long
def test_ranks_add_up_over_shared_memory_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX")
    before = set(all_reduce.BUFFER_FOLDER.iterdir())
    assert try_two_ranks() == "shared memory"
    assert set(all_reduce.BUFFER_FOLDER.iterdir()) <= before


@pytest.mark.long
def test_ranks_without_a_compiler_say_what_they_used() -> None:
    assert try_two_ranks() == "plain gloo: no C++ compiler (install g++)"
