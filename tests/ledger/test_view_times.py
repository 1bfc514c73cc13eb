"""Views of times and memory: noise floors, verdicts, speed-ups and what zeros can give."""

import copy
import math
from datetime import timedelta

import numpy as np
import pytest
from scipy import stats

from tests.ledger import samples
from tests.ledger.made import Ask, Hold, Records, elsewhere, of, other_cell


def test_times_that_were_taken_beside_other_jobs_say_so(found: Records, hold: Hold) -> None:
    timed = [one for one in found if "engine" in one.get("settings", {})]
    noisy = [one | {"settings": one["settings"] | {"alone": "device"}} for one in timed]
    ask = hold([*(one for one in found[1:] if one not in timed), *noisy])
    for view in ("latency", "memory", "results WHERE engine IS NOT NULL"):
        assert ask(f"SELECT DISTINCT workload FROM {view}").rows == (("b1 p32 g8 beside other jobs",),)


def test_results_show_the_first_runtime(ask: Ask) -> None:
    rows = ask("SELECT DISTINCT engine, ranks, workload FROM results WHERE engine IS NOT NULL").rows
    assert rows == (("deepspeed", 1, "b1 p32 g8"),)
    shown = """
        SELECT model, prefill_ms, decode_ms, peak_bytes FROM results
        WHERE method = 'dense' AND task IN ('piqa', 'mrpc_pair')
    """
    phases = """
        SELECT model, sum(ms) FILTER (phase IN ('prefill', 'forward')), max(ms) FILTER (phase = 'decode'), any_value(peak)
        FROM latency
        JOIN (SELECT variant_id, ranks, peak_bytes AS peak FROM memory WHERE phase = 'overall') USING (variant_id, ranks)
        WHERE method = 'dense' AND ranks = 1 GROUP BY model
    """
    assert sorted(ask(shown).rows) == sorted(ask(phases).rows)


def tolerance_factor(n: int, size: float) -> float:
    """k of the bound m + k s under which 95% of a normal distribution lie, with 95% confidence: m is a mean of ``size`` values,
    s the standard deviation of ``n``."""
    return float(stats.nct.ppf(0.95, n - 1, stats.norm.ppf(0.95) * size**0.5)) / size**0.5


def noise_bound(half: float, n: int) -> float:
    """The noise floor, in logarithms, of an A/A run over ``n`` processes with a ratio of 1; ``half`` of its interval."""
    return tolerance_factor(n, 1) * half / float(stats.t.ppf(0.975, n - 1))


# Published one-sided factors for 95% of the distribution with 95% confidence.
@pytest.mark.parametrize(("n", "k"), [(2, 26.260), (3, 7.656), (5, 4.203), (10, 2.911), (20, 2.396), (30, 2.220)])
def test_the_noise_floor_is_a_tolerance_bound(ask: Ask, n: int, k: float) -> None:
    assert tolerance_factor(n, n) == pytest.approx(k, abs=1e-3)
    asked = f"SELECT noise_bound(exp(-0.3), exp(-0.5), exp(-0.1), {n}), noise_bound(1, exp(-0.2), exp(0.2), 2 * {n})"
    ((bound, more),) = ask(asked).rows
    assert bound == pytest.approx(0.3 + noise_bound(0.2, n), rel=1e-4)
    # Beyond 30 the factor of 30 stands, which is a little larger.
    assert noise_bound(0.2, 2 * n) * (1 - 1e-4) < more < 1.01 * noise_bound(0.2, 2 * n)


@pytest.mark.long
@pytest.mark.parametrize("n", [2, 4, 5, 12])
@pytest.mark.parametrize("bias", [0.0, 1.0, 5.0])
def test_noise_floors_hold_95_of_100_comparisons_with_95_percent_confidence(ask: Ask, n: int, bias: float) -> None:
    """Whether or not one of the two copies is slower as a rule; ``bias`` is in standard errors."""
    drawn = np.random.default_rng(n).normal(bias * n**-0.5, 1, size=(20_000, n))
    ((per_half,),) = ask(f"SELECT noise_bound(1, exp(-1), exp(1), {n})").rows
    half = stats.t.ppf(0.975, n - 1) * drawn.std(axis=1, ddof=1) / n**0.5
    floors = (np.abs(drawn.mean(axis=1)) + per_half * half) * n**0.5
    held = stats.norm.cdf(floors - bias) - stats.norm.cdf(-floors - bias)
    confidence = (held >= 0.95).mean()
    assert confidence > 0.945
    if bias == 5:
        assert confidence < 0.955, "no wider than it says"


def on_one_rank(found: Records, model: str, *sparsities: float) -> Records:
    """A model's records of times on one rank, to be changed."""
    timed = copy.deepcopy(of(found, stage="latency", model=model))
    return [
        one
        for one in timed
        if one["settings"]["ranks"] == 1 and one["variant"]["sparsity"] in (sparsities or (0, 0.5, 0.9))
    ]


def differing(ratio: float, low: float, high: float) -> Records:
    """What a forward pass differs from dense by in four pairs."""
    return [{"phase": "forward", "ratio": ratio, "low": low, "high": high, "pairs": 4}]


def test_latency_verdicts_follow_the_interval_and_the_noise(found: Records, hold: Hold) -> None:
    timed = on_one_rank(found, "mini")
    ratios = {0.0: (1.0, 0.95, 1.05), 0.5: (0.97, 0.96, 0.98), 0.9: (0.5, 0.4, 0.6)}
    for record in timed:
        record["result"]["differences"] = differing(*ratios[record["variant"]["sparsity"]])
    ask = hold(timed)
    asked = "SELECT sparsity, speedup, verdict, noise, resolution FROM latency ORDER BY 1"
    runs = "SELECT DISTINCT noise_runs FROM latency"
    rows = ask(asked).rows
    assert [row[2] for row in rows] == [None, "no difference detected", "faster"]
    assert rows[2][1] == pytest.approx(2.0)
    noise = math.exp(noise_bound(math.log(1.05 / 0.95) / 2, 4)) - 1
    assert rows[0][3] == pytest.approx(noise, rel=1e-4)
    assert [row[4] for row in rows] == pytest.approx([noise, noise, 1.5**0.5 - 1], rel=1e-4)
    assert ask(runs).rows == ((4,),), "of one process, its pairs of blocks"
    for record in timed:
        record["result"]["differences"][0] |= {"processes": 6, "pairs": 12}
    ask = hold(timed)
    assert ask(runs).rows == ((6,),)
    same = ask(asked).rows[2][3]
    pruned = [one for one in timed if one["variant"]["sparsity"] == 0.9]
    pruned[0]["result"]["differences"][0]["processes"] = 3
    fewer = hold(timed)(asked).rows[2][3]
    assert math.log1p(fewer) == pytest.approx(2**0.5 * math.log1p(same)), "half as many processes vary more"
    alone = hold(pruned)(asked).rows
    assert [row[2:] for row in alone] == [("no noise floor", None, None)], "nothing tells chance by"


def test_a_speedup_is_the_kernels_part_times_the_zeros(found: Records, hold: Hold) -> None:
    timed = on_one_rank(found, "mini", 0.0, 0.9)
    dense, pruned = timed
    forced = other_cell(dense, "forced", copy.deepcopy(dense["result"]), forced=True)
    for record, ratio, half in ((dense, 1.0, 0.01), (pruned, 0.4, 0.02), (forced, 0.8, 0.02)):
        record["result"]["differences"] = differing(ratio, ratio - half, ratio + half)
    ask = hold([*timed, forced])
    asked = (
        "SELECT sparsity, speedup, kernel_speedup, zeros_speedup, noise FROM latency WHERE phase = 'forward' ORDER BY 1"
    )
    without, zeros = ask(asked).rows
    assert without[1:3] == pytest.approx((1.0, 1.25)) and without[3] is None
    assert zeros[1:4] == pytest.approx((2.5, 1.25, 2.0))
    noise = math.exp(noise_bound(math.log(1.01 / 0.99) / 2, 4)) - 1
    assert zeros[4] == pytest.approx(noise, rel=1e-4), "the kernel's own gain is no noise"
    drawn = ask("SELECT speedup FROM speedups WHERE sparsity = 0").rows
    assert drawn == ((pytest.approx(1.25),),), "a line of such an engine begins at what its kernel does"
    for record in timed:
        record["result"]["kernel"] = "dense torch linear ×12"
    parts = hold([*timed, forced])("SELECT DISTINCT zeros_speedup FROM latency WHERE sparsity > 0").rows
    assert parts == ((None,),), "what skips no zeros owes them nothing"


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [((0.5, 2.0), "not steady"), ((0.97, 0.99), "not steady"), ((0.4, 0.6), "faster"), ((1.5, 1.7), "slower")],
)
def test_a_phase_that_did_not_settle_decides_nothing_unless_all_of_its_interval_lies_beyond_the_noise(
    found: Records, hold: Hold, ends: tuple[float, float], verdict: str
) -> None:
    timed = on_one_rank(found, "mini", 0.0, 0.5)
    for record in timed:
        low, high = (0.95, 1.05) if record["variant"]["sparsity"] == 0 else ends
        record["result"]["differences"] = differing((low * high) ** 0.5, low, high)
        for phase in record["result"]["phases"]:
            phase["steady"] = record["variant"]["sparsity"] == 0 or phase["side"] == "variant"
    rows = hold(timed)("SELECT verdict, steady FROM latency WHERE sparsity = 0.5 AND phase = 'forward'").rows
    assert rows == ((verdict, False),)


@pytest.mark.parametrize("processes", [1, 5])
def test_each_phase_of_several_processes_has_its_noise(found: Records, hold: Hold, processes: int) -> None:
    (itself,) = on_one_rank(found, "smol", 0.0)
    for difference in itself["result"]["differences"]:
        wide = 1.1 if difference["phase"] == "generate" else 1.02
        difference |= {"ratio": 1.0, "low": 1 / wide, "high": wide, "pairs": 5, "processes": processes}
    asked = "SELECT phase, noise FROM latency WHERE phase IN ('prefill', 'decode', 'generate')"
    noise = dict(hold([itself])(asked).rows)
    worst, quiet = (math.exp(noise_bound(math.log(wide), 5)) - 1 for wide in (1.1, 1.02))
    assert noise["generate"] == pytest.approx(worst, rel=1e-4)
    assert noise["decode"] == noise["prefill"] == pytest.approx(quiet if processes > 1 else worst, rel=1e-4)


def test_zeros_give_no_more_than_the_bytes_that_they_save(found: Records, hold: Hold) -> None:
    timed = on_one_rank(found, "smol", 0.0, 0.9)
    forced = other_cell(timed[0], "forced", timed[0]["result"], forced=True)
    records = [*timed, forced, *of(found, stage="storage", model="smol")]
    asked = "SELECT phase, zeros_bound FROM latency WHERE sparsity = {} AND phase IN ('prefill', 'decode')"
    size = (
        "(SELECT prunable_bytes FROM sizes WHERE model = 'smol' AND method = '{}' AND format = '{}' AND sparsity = {})"
    )
    whole, packed = size.format("dense", "dense", 0), size.format("magnitude", "packed", 0.9)
    ask = hold(records)
    bounds = dict(ask(asked.format(0.9)).rows)
    assert bounds == {"prefill": None, "decode": pytest.approx(ask(f"SELECT {whole} / {packed}").rows[0][0])}
    assert dict(ask(asked.format(0.0)).rows) == {"prefill": None, "decode": None}
    ask = hold([*records, *of(found, stage="structure", model="smol")])
    head = "(SELECT 2 * count FROM tensors WHERE model = 'smol' AND method = 'dense' AND kind = 'embedding')"
    with_head = dict(ask(asked.format(0.9)).rows)["decode"]
    wanted = ask(f"SELECT ({whole} + {head}) / ({packed} + {head})").rows[0][0]
    assert with_head == pytest.approx(wanted), "a token reads the output head too"
    assert with_head < bounds["decode"]
    for record in timed:
        record["result"]["dtype"] = "float32"
    rows = hold(records)(asked.format(0.9)).rows
    assert {bound for _, bound in rows} == {None}, "the files are in another number format"


def test_engines_share_a_panel_though_one_ran_in_two_formats(found: Records, hold: Hold) -> None:
    timed = on_one_rank(found, "mini")
    others = [
        other_cell(one, dtype, one["result"] | {"engine": "sparse", "dtype": dtype}, engine="sparse", dtype=dtype)
        for dtype in ("bfloat16", "float32")
        for one in timed
    ]
    asked = "SELECT panel, list(DISTINCT engine ORDER BY engine) FROM speedups GROUP BY panel ORDER BY panel"
    rows = hold([*timed, *others])(asked).rows
    assert [(panel.rpartition(", ")[2], engines) for panel, engines in rows] == [
        ("bfloat16", ["deepspeed", "sparse"]), ("float32", ["sparse"]),
    ]  # fmt: skip


def test_memory_is_compared_with_that_of_its_own_place(found: Records, hold: Hold) -> None:
    """One kind of machine with two versions of CUDA: each variant has one row, beside the dense model of its own version."""
    weighed = [one for one in of(found, stage="memory", model="mini") if one["settings"]["ranks"] == 1]
    there = copy.deepcopy(weighed)
    for record in there:
        record["where"]["id"] = "newer"
        record["started_at"] = (samples.START + timedelta(days=1)).isoformat()
        record["result"]["peak_bytes"] *= 2 if record["variant"]["sparsity"] else 1
    asked = "SELECT ratio FROM memory WHERE phase = 'overall' AND sparsity = 0.9 AND method = 'magnitude' ORDER BY ALL"
    assert hold([*weighed, *there])(asked).rows == ((1.0,), (2.0,))


def test_memory_is_per_rank_summed_and_overall(ask: Ask) -> None:
    rows = ask(
        "SELECT phase, rank, peak_bytes FROM memory WHERE model = 'mini' AND ranks = 2 AND method = 'dense'"
    ).rows
    assert set(rows) == {
        ("overall", None, 110_000_000), ("load", None, 110_000_000), ("forward", None, 110_000_000),
        *((phase, rank, 45_000_000) for phase in ("load", "forward") for rank in (0, 1)),
    }  # fmt: skip


def test_what_gpus_processes_hold_is_summed_only_where_all_are_known(found: Records, hold: Hold) -> None:
    weighed = copy.deepcopy(
        next(one for one in of(found, stage="memory", model="mini") if one["settings"]["ranks"] == 2)
    )
    for row in weighed["result"]["per_rank"]:
        row["cuda_process_bytes"] = 5 if row["rank"] == 0 or row["phase"] == "load" else None
    asked = "SELECT phase, cuda_process_bytes FROM memory WHERE rank IS NULL AND phase <> 'overall' ORDER BY 1"
    assert hold([weighed])(asked).rows == (("forward", None), ("load", 10))


@pytest.mark.parametrize(("placed", "where"), [("", ""), (', "nodes": 2', " on 2 nodes")])
def test_a_workload_says_on_how_many_nodes_its_ranks_were(placed: str, where: str, ask: Ask) -> None:
    settings = '{"workload": {"batch": 1, "prompt": 128, "generate": 16}' + placed + "}"
    assert list(ask(f"SELECT _workload('{settings}'::JSON)").rows) == [(f"b1 p128 g16{where}",)]


def test_memory_of_another_machine_does_not_stand_beside_times(found: Records, hold: Hold) -> None:
    records = copy.deepcopy(of(found, model="mini", method="dense"))
    away = [elsewhere(one, "second") for one in records if one["stage"] == "memory"]
    asked = "SELECT DISTINCT machine, prefill_ms IS NULL, peak_bytes IS NULL FROM results"
    (here,) = {one["environment"]["machine"] for one in records}
    assert hold([*records, *away])(asked).rows == ((here, False, False),)
    ask = hold([*(one for one in records if one["stage"] != "memory"), *away])
    assert ask(asked).rows == ((here, False, True),)


def test_a_range_without_numbers_is_none(ask: Ask) -> None:
    pairs = ("1e0, 2e0", "1.1e0, 1.2e0", "NULL::DOUBLE, NULL::DOUBLE")
    asked = "SELECT " + ", ".join(f"range_label('{{:.0f}}', {pair})" for pair in pairs)
    assert ask(asked).rows == (("1 to 2", "1", None),)


def test_every_speed_stands_beside_the_fastest_engine_for_the_dense_model(ask: Ask) -> None:
    keys = "model, workload, phase"
    dense: dict[tuple[str, ...], float] = {}
    for *at, ms in ask(f"SELECT {keys}, ms FROM latency WHERE method = 'dense'").rows:
        dense[tuple(at)] = min(ms, dense.get(tuple(at), math.inf))
    asked = f"SELECT {keys}, ms, speedup_over_best, best_16_ms, tokens_per_second, test FROM throughput"
    rows = ask(asked).rows
    assert len(rows) == len(ask("SELECT DISTINCT variant_id, engine, ranks, phase FROM latency").rows)
    for model, workload, phase, ms, over_best, best, tokens, test in rows:
        assert best == pytest.approx(dense[model, workload, phase])
        assert over_best == pytest.approx(best / ms)
        expected = {"prefill": (32e3 / ms, "pp 32"), "forward": (32e3 / ms, "pp 32"), "decode": (1e3 / ms, "tg")}
        assert (tokens, test) == (pytest.approx(expected[phase][0]), expected[phase][1]) if phase in expected else True
    assert {test for *_, test in rows} == {"pp 32", "tg", "32 + 8"}


def test_the_units_of_a_rounded_variant(found: Records, hold: Hold) -> None:
    """Its file's bits over all parameters, the bytes that a token reads, and its place among the dense models."""
    kept = copy.deepcopy([one for one in of(found, model="smol") if one["stage"] in ("make", "storage", "latency")])
    for record in kept:
        if record["variant"]["steps"]:
            settings = {"type": "Q4_K_M", "importance": False}
            record["variant"]["steps"] = [{"verb": "quantize", "name": "gguf", "settings": settings}]
    asked = "SELECT t.*, f.dense_bytes, f.parameters FROM throughput t JOIN _formats f USING (variant_id) WHERE phase = 'decode'"
    rows = hold(kept)(asked).dicts()
    rounded = [row for row in rows if row["method"] != "dense"]
    assert rounded
    for row in rows:
        assert row["bits_per_weight"] == pytest.approx(8 * row["dense_bytes"] / row["parameters"])
        assert row["gb_per_second"] == pytest.approx(row["dense_bytes"] / row["ms"] / 1e6)
        assert row["share_of_reading"] == pytest.approx(row["gb_per_second"] / 30)
        assert row["best_4_ms"] == pytest.approx(min(one["ms"] for one in rounded)) and row["best_8_ms"] is None
