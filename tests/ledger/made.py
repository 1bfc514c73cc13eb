"""Records made for tests of views, and results with given outcomes."""

import copy
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from sparsebench.ledger.query import Table
from tests.ledger import samples

Ask = Callable[[str], Table]
"""Asks a ledger in SQL."""
Hold = Callable[[Iterable[dict[str, Any]]], Ask]
"""Makes a new ledger of records."""


def of(found: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The records with these values of stage, or of the variant's fields."""
    return [
        record
        for record in found
        if "variant" in record and all((record | record["variant"])[key] == value for key, value in wanted.items())
    ]


def outcomes(values: list[int], task: str = "piqa") -> dict[str, Any]:
    """A benchmark's result with these 0/1 outcomes."""
    documents = [
        {"doc_id": str(at), "doc_hash": f"h{at}", "value": value, "label": None} for at, value in enumerate(values)
    ]
    score = sum(values) / len(values)
    fixed = {"metric": "acc", "stderr": 0.0, "limited": False, "chance": 0.5, "protocol": {}}
    return fixed | {"task": task, "score": score, "n": len(values), "outcomes": documents}


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


def errors(wrong: list[float]) -> dict[str, Any]:
    """A phoneme error rate's result over words of 10 phonemes each, of which so many are ``wrong``."""
    documents = [
        {"doc_id": str(at), "doc_hash": f"h{at}", "value": value, "label": 10.0} for at, value in enumerate(wrong)
    ]
    fixed = {"metric": "per", "stderr": 0.0, "limited": False, "chance": None, "protocol": {}, "task": "g2p_per"}
    return fixed | {"score": sum(wrong) / (10 * len(wrong)), "n": len(wrong), "outcomes": documents}


def windows(values: list[float]) -> dict[str, Any]:
    """Perplexity's result over windows of 100 tokens each."""
    documents = [
        {"doc_id": str(at), "doc_hash": f"h{at}", "value": value, "label": 100.0} for at, value in enumerate(values)
    ]
    score = math.exp(sum(values) / (100 * len(values)))
    fixed = {"metric": "perplexity", "stderr": 0.0, "limited": False, "chance": None, "protocol": {}}
    return fixed | {"task": "perplexity", "score": score, "n": len(values), "outcomes": documents}


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
