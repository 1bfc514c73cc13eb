"""What a rule without a model gets: against a plain count, on the very documents that a model is shown."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsebench import benchmarks, sources
from sparsebench.benchmarks import ScoreResult, TaskSpec, heuristics
from sparsebench.benchmarks.statistics import average_precision
from sparsebench.errors import UnsupportedError
from tests.benchmarks.conftest import Documents, run
from tests.ledger import samples


def scored(task: str) -> ScoreResult:
    found: list[Any] = []
    heuristics.score([TaskSpec(task)], sources.Cache(), lambda _, result: found.append(result))
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def shown(result: ScoreResult) -> list[tuple[str, str]]:
    return [(one.doc_id, one.doc_hash) for one in result.outcomes]


def test_of_choices_the_shorter_or_the_longer_is_the_answer(tiny_llama: Path, documents: Documents) -> None:
    found, right = scored("piqa"), {}
    for name, choose in (("the shortest answer", min), ("the longest answer", max)):
        pairs = [([len(row["sol1"]), len(row["sol2"])], row["label"]) for row in documents["piqa"]]
        right[name] = [float(lengths.index(choose(lengths)) == label) for lengths, label in pairs]
    best = max(right, key=lambda name: sum(right[name]))
    assert [one.value for one in found.outcomes] == right[best]
    assert found.protocol["heuristic"] == best and found.protocol["prefix_sharing"] == "off: no model"
    assert shown(found) == shown(run(tiny_llama, "decoder", "piqa"))


def test_a_longer_answer_stays_longer_where_lm_eval_divides_by_the_length(documents: Documents) -> None:
    found = scored("arc_easy")
    assert found.metric == "acc_norm"
    right = []
    for choose in (min, max):
        lengths = [[len(text) for text in row["choices"]["text"]] for row in documents["ARC-Easy"]]
        letters = [row["choices"]["label"].index(row["answerKey"]) for row in documents["ARC-Easy"]]
        right.append(sum(one.index(choose(one)) == place for one, place in zip(lengths, letters, strict=True)))
    assert found.score == pytest.approx(max(right) / len(documents["ARC-Easy"]))


def test_pairs_and_passages_are_ranked_by_shared_words(tiny_bert: Path, documents: Documents) -> None:
    def cosine(one: str, other: str) -> float:
        first, second = set(one.split()), set(other.split())
        return len(first & second) / math.sqrt(len(first) * len(second))

    found = scored("mrpc_pair")
    wanted = [cosine(row["sentence1"], row["sentence2"]) for row in documents["mrpc"]]
    assert [one.value for one in found.outcomes] == pytest.approx(wanted, abs=1e-6)
    labels = np.array([row["label"] for row in documents["mrpc"]], dtype=float)
    values = np.array([one.value for one in found.outcomes])
    assert found.score == pytest.approx(float(average_precision(values, labels, np.ones((1, len(labels))))[0]))
    assert shown(found) == shown(run(tiny_bert, "encoder", "mrpc_pair"))
    asked = scored("sciq_retrieval")
    passages = {row["support"] for row in documents["sciq"] if row["support"]}
    for one in asked.outcomes:
        row = documents["sciq"][int(one.doc_id)]
        own = cosine(row["question"], row["support"])
        others = [cosine(row["question"], passage) for passage in passages - {row["support"]}]
        if min(abs(own - other) for other in others) > 1e-6:
            assert one.value == float(own > max(others))


def test_what_has_no_heuristic_is_refused_and_not_planned() -> None:
    with pytest.raises(UnsupportedError, match="task perplexity: no heuristic"):
        scored("perplexity")
    experiment = samples.manifest(
        variants=[{"floor": "heuristic"}],
        benchmarks={"decoder": [{"task": "piqa"}, {"task": "perplexity"}], "encoder": [{"task": "sst2_probe"}]},
    )
    (cell,) = (cell for cell in samples.plan(experiment).cells if not cell.variant.is_dense)
    assert (cell.stage, cell.settings["task"], cell.variant.model) == ("benchmarks", "piqa", "smol")
    for name in ("hellaswag", "stsb_sts", "sciq_retrieval"):
        assert heuristics.has_heuristic(benchmarks.all_tasks()[name])
