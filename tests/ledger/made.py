"""Records made for tests of views, and results with given outcomes."""

import copy
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from sparsebench.ledger.query import Table
from tests.ledger import samples

Records = list[dict[str, Any]]
Ask = Callable[[str], Table]
"""Asks a ledger in SQL."""
Hold = Callable[[Iterable[dict[str, Any]]], Ask]
"""Makes a new ledger of records."""
Scored = Callable[..., Records]
"""Makes the records of the dense model and of a variant with two results."""


def of(found: Records, **wanted: Any) -> Records:
    """The records with these values of stage, or of the variant's fields."""
    return [
        record
        for record in found
        if "variant" in record and all((record | record["variant"])[key] == value for key, value in wanted.items())
    ]


def _result(values: Iterable[float], label: float | None, **said: Any) -> dict[str, Any]:
    documents = [
        {"doc_id": str(at), "doc_hash": f"h{at}", "value": value, "label": label} for at, value in enumerate(values)
    ]
    fixed = {"stderr": 0.0, "limited": False, "chance": None, "protocol": {}, "n": len(documents)}
    return fixed | said | {"outcomes": documents}


def outcomes(values: list[int], task: str = "piqa") -> dict[str, Any]:
    """A benchmark's result with these 0/1 outcomes."""
    return _result(values, None, task=task, metric="acc", chance=0.5, score=sum(values) / len(values))


def errors(wrong: list[float]) -> dict[str, Any]:
    """A phoneme error rate's result over words of 10 phonemes each, of which so many are ``wrong``."""
    return _result(wrong, 10.0, task="g2p_per", metric="per", score=sum(wrong) / (10 * len(wrong)))


def windows(values: list[float]) -> dict[str, Any]:
    """Perplexity's result over windows of 100 tokens each."""
    score = math.exp(sum(values) / (100 * len(values)))
    return _result(values, 100.0, task="perplexity", metric="perplexity", score=score)


def elsewhere(record: dict[str, Any], machine: str, days: int = 1) -> dict[str, Any]:
    """The same cell's record of another machine, some days later."""
    places = {
        "where": record["where"] | {"id": machine, "machine": machine},
        "environment": record["environment"] | {"id": machine, "machine": machine},
        "started_at": (samples.START + timedelta(days=days)).isoformat(),
    }
    return copy.deepcopy(record) | places


def without_skill(record: dict[str, Any], name: str, values: list[int] | dict[str, Any]) -> dict[str, Any]:
    """The record of a floor in place of that of a variant."""
    result = values if isinstance(values, dict) else outcomes(values)
    made = copy.deepcopy(record) | {"cell_id": name, "key": name, "result": result}
    step = {"verb": "floor", "name": name, "settings": {}}
    made["variant"] |= {"id": name, "method": name, "recipe": name, "sparsity": 0.0, "granularity": "", "steps": [step]}
    return made


def recovered(record: dict[str, Any]) -> dict[str, Any]:
    """The same record of a variant that was trained behind what the given one's was made by."""
    other = copy.deepcopy(record)
    before = record["variant"]
    step = {"verb": "recover", "name": "reconstruct", "settings": {"epochs": 5}}
    other["variant"] |= {
        "id": "recovered",
        "recipe": f"{before['recipe']}, then reconstruct",
        "steps": [*before["steps"], step],
        "parents": [*before["parents"], before["id"]],
    }
    other |= {key: f"{record[key]}-recovered" for key in ("cell_id", "key")}
    return other


def other_cell(record: dict[str, Any], name: str, result: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The record of a cell of the same variant with other settings."""
    made = copy.deepcopy(record) | {key: f"{record[key]}-{name}" for key in ("cell_id", "key")}
    return made | {"settings": record["settings"] | settings, "result": result}
