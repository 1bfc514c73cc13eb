"""Generated records, in any order and in any number of batches: the views say of them what pandas and scipy say."""

import copy
from datetime import timedelta
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from tests.ledger import samples
from tests.ledger.made import Records, of, outcomes

FEW = settings(max_examples=settings.default.max_examples // 25)
"""Each example is a ledger or two."""
TASKS = ("a", "b", "c")
KEYS = ["variant_id", "task"]


def generated(found: Records, seed: int) -> list[dict[str, Any]]:
    """A score of each variant of one model on several tasks, some measured again, each on documents of its own."""
    draw = np.random.default_rng(seed)
    made = []
    for first in {one["variant"]["id"]: one for one in of(found, stage="benchmarks", model="smol")}.values():
        for task in TASKS:
            skill = 0.9 - 0.4 * first["variant"]["sparsity"] * draw.random()
            for again in range(int(draw.integers(1, 3))):
                kept = np.flatnonzero(draw.random(60) < (0.9 if task == "a" else 1.1))
                result = outcomes([int(value) for value in draw.random(len(kept)) < skill], task)
                for document, place in zip(result["outcomes"], kept, strict=True):
                    document |= {"doc_id": str(place), "doc_hash": f"{task}{place}"}
                named = {key: f"{first[key]}-{task}" for key in ("cell_id", "key")}
                date = (samples.START + timedelta(days=again)).isoformat()
                more = {"settings": {"task": task}, "started_at": date, "result": result}
                made.append(copy.deepcopy(first) | named | more)
    return made


def compared(records: list[dict[str, Any]]) -> pd.DataFrame:
    """What ``vs_dense`` has to say: each variant's score that came last against the dense model's, by document."""
    last = {(one["variant"]["id"], one["settings"]["task"]): one for one in records}
    dense = {task: one for (_, task), one in last.items() if one["variant"]["method"] == "dense"}
    rows = []
    for (variant, task), one in last.items():
        if one["variant"]["method"] == "dense":
            continue
        theirs, own = (pd.DataFrame(side["result"]["outcomes"]) for side in (dense[task], one))
        both = own.merge(theirs, on="doc_hash", suffixes=("", "_dense"))
        gained, lost = ((both.value - both.value_dense == sign).sum() for sign in (1, -1))
        p = binomtest(int(gained), int(gained + lost)).pvalue if gained + lost else 1.0
        change = (both.value - both.value_dense).mean()
        rows.append((variant, task, own.value.mean(), theirs.value.mean(), change, len(both), gained, lost, p))
    frame = pd.DataFrame(rows, columns=[*KEYS, "score", "dense_score", "difference", "pairs", "gained", "lost", "p"])
    frame["q"] = false_discovery_control(frame.p)
    frame["q_tests"], frame["tests"] = len(frame), len(TASKS)
    ranks = frame.groupby("variant_id").p.rank(method="first")
    frame["p_holm"] = (frame.p * (len(TASKS) + 1 - ranks)).clip(upper=1)
    frame = frame.sort_values(["variant_id", "p"])
    frame["p_holm"] = frame.groupby("variant_id").p_holm.cummax()
    return frame.set_index(KEYS).sort_index()


@FEW
@given(seed=st.integers(0, 10**6), batches=st.integers(1, 4), order=st.randoms(use_true_random=False))
def test_variants_are_compared_with_dense(seed: int, batches: int, order: Any, found: Records) -> None:
    records = generated(found, seed)
    shuffled = order.sample(records, len(records))
    batched = [shuffled[batch::batches] for batch in range(batches)]
    wanted = compared(list(chain.from_iterable(batched)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "l.duckdb"
        for batch in batched:
            Ledger(path).ingest(batch)
        rows = pd.DataFrame(query.run(path, "FROM vs_dense").dicts()).set_index(KEYS).sort_index()
        shown = pd.DataFrame(query.run(path, "FROM results WHERE verdict IS NOT NULL").dicts())
    assert list(rows.index) == list(wanted.index)
    for column in wanted:
        assert rows[column].tolist() == pytest.approx(wanted[column].tolist()), column
    clear = rows.p_holm < 0.05
    assert set(rows.verdict[clear]) <= {"worse", "better"}
    assert ((rows.verdict == "better") == (clear & (rows.difference > 0))).all()
    assert set(rows.verdict[~clear]) <= {"no difference detected", "at chance"}
    kept = (rows.score - 0.5) / (rows.dense_score - 0.5)
    assert (rows.low <= rows.difference).all() and (rows.difference <= rows.high).all()
    same = rows.pairs == 60
    assert rows.retained[same].tolist() == pytest.approx(kept[same].tolist())
    assert sorted(shown.q) == pytest.approx(sorted(rows.q)), "the view of all results says the same"


@FEW
@given(seed=st.integers(0, 10**6))
def test_the_front_is_what_no_other_variant_beats(seed: int, found: Records) -> None:
    records = generated(found, seed) + of(found, stage="storage", model="smol")
    with TemporaryDirectory() as folder:
        Ledger(Path(folder) / "l.duckdb").ingest(records)
        rows = query.run(Path(folder) / "l.duckdb", "FROM pareto WHERE cost = 'bytes'").dicts()
    assert len(rows) >= len(TASKS)
    for row in rows:
        rivals = [one for one in rows if (one["task"], one["n"]) == (row["task"], row["n"])]
        beaten = any(
            one["score"] >= row["score"]
            and one["price"] <= row["price"]
            and (one["score"] > row["score"] or one["price"] < row["price"])
            for one in rivals
        )
        assert row["on_front"] == (not beaten)
