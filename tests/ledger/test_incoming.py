"""What of a record must fit what it says before a ledger takes it."""

import copy
import math

import numpy as np
import pytest

from sparsebench.benchmarks.contract import mean_stderr
from sparsebench.benchmarks.statistics import ratio
from sparsebench.errors import RecordError
from sparsebench.ledger.incoming import check_score
from tests.ledger.made import Hold, Records, errors, of, outcomes, windows


@pytest.fixture
def unequal(found: Records) -> dict:
    """The record of a perplexity over windows of 3 to 400 tokens."""
    tokens = np.random.default_rng(1).integers(3, 400, 12).astype(float)
    losses = tokens * np.random.default_rng(2).normal(2.0, 0.3, 12)
    record = copy.deepcopy(of(found, stage="benchmarks")[0])
    result = windows(losses.tolist())
    for outcome, count in zip(result["outcomes"], tokens.tolist(), strict=True):
        outcome["label"] = count
    rate, error = ratio(losses.tolist(), tokens.tolist())
    assert error is not None
    result |= {"score": math.exp(rate), "stderr": math.exp(rate) * error}
    return record | {"result": result}


def test_a_perplexity_s_standard_error_is_that_of_a_ratio_or_the_one_of_older_records(unequal: dict) -> None:
    result = unequal["result"]
    check_score(unequal, "mine.json")
    old_error = mean_stderr([outcome["value"] / outcome["label"] for outcome in result["outcomes"]])
    old = result["score"] * old_error
    assert abs(old / result["stderr"] - 1) > 0.01
    check_score(unequal | {"result": result | {"stderr": old}}, "old.json")
    between = (old + result["stderr"]) / 2
    with pytest.raises(RecordError, match=r"forged\.json.*standard error"):
        check_score(unequal | {"result": result | {"stderr": between}}, "forged.json")


@pytest.mark.parametrize(
    "result", [outcomes([1]), errors([3.0]), windows([250.0])], ids=["share", "rate", "perplexity"]
)
@pytest.mark.parametrize("stderr", [None, 0.0])
def test_one_document_has_no_standard_error(found: Records, hold: Hold, result: dict, stderr: float | None) -> None:
    record = copy.deepcopy(of(found, stage="benchmarks", method="dense")[0])
    record |= {"result": result | {"stderr": stderr}, "settings": record["settings"] | {"task": result["task"]}}
    check_score(record, "mine.json")
    assert hold([record])("SELECT n, stderr FROM scores").rows == ((1, None),)
    forged = record | {"result": record["result"] | {"stderr": 0.1}}
    with pytest.raises(RecordError, match="standard error"):
        check_score(forged, "forged.json")


def test_more_documents_have_a_standard_error(found: Records) -> None:
    record = copy.deepcopy(of(found, stage="benchmarks")[0]) | {"result": outcomes([1, 0]) | {"stderr": None}}
    with pytest.raises(RecordError, match=r"mine\.json"):
        check_score(record, "mine.json")
