"""Ways to forge or damage a record: each gives the text of one that says what is not so, or that is no record."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparsebench import provenance, records

Record = dict[str, Any]
Forgery = Callable[[Record, Record], str]
"""Gives a text for a record, with another record to take parts of."""
PUBLISHED = Path(__file__).parents[2] / "ledger" / "published"
SOURCES = {
    "floors": ("acc", "ap", "per", "structure", "storage"),
    "engines": ("perplexity", "make", "latency", "memory"),
    "kinds": ("outputs",),
}
SCORES = ("acc", "ap", "per", "perplexity")
KINDS = tuple(kind for kinds in SOURCES.values() for kind in kinds)


def real() -> dict[str, Record]:
    """One published record of each kind: of a stage, or of a metric."""
    found: dict[str, Record] = {}
    for name, wanted in SOURCES.items():
        for record in records.read([PUBLISHED / f"{name}.jsonl.zst"]):
            if record.get("status") == "done":
                kind = record["result"]["metric"] if record["stage"] == "benchmarks" else record["stage"]
                if kind in wanted:
                    found.setdefault(kind, record)
    return found


def text_of(record: Record) -> str:
    """A record as sparsebench writes it, with a checksum that fits."""
    return json.dumps(provenance.sealed(record), separators=(",", ":"))


def changed(**values: Any) -> Forgery:
    """Other values in the record itself."""
    return lambda record, _: text_of(record | values)


def result(**values: Any) -> Forgery:
    """Other values in its result."""
    return within("result", **values)


def of_other(*names: str) -> Forgery:
    """Parts of another record."""
    return lambda record, other: text_of(record | {name: other[name] for name in names})


def outcomes(change: Callable[[list[Record]], Any]) -> Forgery:
    """Other outcomes: what the function returns, or the list that it has changed."""

    def forged(record: Record, _: Record) -> str:
        record = copy.deepcopy(record)
        given = record["result"]["outcomes"]
        record["result"]["outcomes"] = change(given) or given
        return text_of(record)

    return forged


def text(change: Callable[[str], str]) -> Forgery:
    """The same record, its text changed behind its checksum."""
    return lambda record, _: change(text_of(record))


def within(part: str, **values: Any) -> Forgery:
    """Other values in a part of the record."""
    return lambda record, _: text_of(record | {part: record[part] | values})


def times(name: str, factor: float) -> Forgery:
    """A number of the result times a factor."""
    return lambda record, other: result(**{name: record["result"][name] * factor})(record, other)


def _set(position: int, **values: Any) -> Callable[[list[Record]], None]:
    return lambda given: given[position].update(values)


def _digit(said: str) -> str:
    at = said.index('"seconds":') + len('"seconds":')
    return said[:at] + ("2" if said[at] == "1" else "1") + said[at + 1 :]


EVERY: dict[str, Forgery] = {
    "result of another kind": of_other("result"),
    "settings and result of another kind": of_other("result", "settings"),
    "stage of another kind": of_other("stage"),
    "key of another cell": of_other("key"),
    "cell_id of another cell": of_other("cell_id"),
    "a result that is a list": changed(result=[]),
    "no result": changed(result=None),
    "truncated": text(lambda said: said[: len(said) // 2]),
    "a digit changed": text(_digit),
    "a later date behind its checksum": text(lambda said: said.replace('"started_at":"2026', '"started_at":"2036')),
    "another origin behind its checksum": text(lambda said: said.replace('"origin":"published"', '"origin":""')),
}
"""For a record of two kinds; those before ``key`` for one of each."""
SCORED: dict[str, Forgery] = {
    "score raised": times("score", 1.01),
    "score lowered": times("score", 0.5),
    "standard error off": times("stderr", 0.4),
    "more documents": times("n", 10),
    "an outcome changed": outcomes(_set(0, value=1e6)),
    "an outcome gone": outcomes(lambda given: given[1:]),
    "an outcome twice": outcomes(lambda given: [*given, given[0]]),
}
"""For a record of each metric: its numbers are computed again."""
ACCURACY: dict[str, Forgery] = {
    "score NaN": result(score=float("nan")),
    "score infinite": text(lambda said: text_of(json.loads(said.replace('"score":', '"score":1e400,"was":')))),
    "score huge": result(score=10**400),
    "score a text": result(score="high"),
    "score in a list": result(score=[0.5]),
    "no documents": result(n=0, outcomes=[]),
    "no outcomes": result(outcomes=[]),
    "outcomes null": result(outcomes=None),
    "outcomes a mapping": result(outcomes={}),
    "an outcome NaN": outcomes(_set(0, value=float("nan"))),
    "an outcome huge": outcomes(_set(1, value=10**400)),
    "an outcome a text": outcomes(_set(1, value="right")),
    "outcomes without values": outcomes(lambda given: [{"doc_id": one["doc_id"]} for one in given]),
    "another metric": result(metric="nll"),
    "another task": result(task="piqa"),
    "a task in the settings": within("settings", task="piqa"),
    "fewer documents in the settings": within("settings", limit=1),
}
"""For a record of an accuracy."""
ONCE: dict[str, Forgery] = {
    "status unknown": changed(status="better"),
    "status a path": changed(status="../../done"),
    "key a path": changed(key="../../escaped", cell_id="../../escaped"),
    "cell_id null": changed(cell_id=None),
    "variant null": changed(variant=None),
    "variant a number": changed(variant=7),
    "settings a list": changed(settings=[]),
    "started yesterday": changed(started_at="yesterday"),
    "started never": changed(started_at=None),
    "of another format": changed(format=3),
    "format a text": changed(format="2"),
    "of an unknown kind": changed(kind="note"),
    "environment of another id": within("environment", machine="EPYC ×128"),
    "place of another machine": within("where", machine="other"),
    "where a list": changed(where=[], environment={}),
    "no origin": lambda record, _: text_of({key: value for key, value in record.items() if key != "origin"}),
    "checksum null": lambda record, _: json.dumps({**record, "checksum": None}),
    "checksum of another": lambda record, other: json.dumps({**record, "checksum": other["checksum"]}),
    "nested deep": text(lambda said: said[:-1] + ',"more":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "nested deep, sealed": changed(more=json.loads("[" * 200 + "]" * 200)),
    "a key twice": text(lambda said: said[:-1] + ',"seconds":1}'),
    "a long text": changed(reason="a" * 200_000),
    "not UTF-8": lambda record, _: text_of(record).replace('"origin":"published"', '"origin":"\udcff"'),
    "empty": lambda *_: "",
    "a list": lambda *_: "[]",
}
"""For one record."""


def forged() -> Iterator[tuple[str, str, Forgery]]:
    """The name, the kind of the record and the forgery of each case."""
    for kind in KINDS:
        some = list(EVERY)[: None if kind in ("acc", "latency") else 3]
        yield from ((f"{kind}: {name}", kind, EVERY[name]) for name in some)
    for kind in SCORES:
        yield from ((f"{kind}: {name}", kind, forgery) for name, forgery in SCORED.items())
    yield from ((f"acc: {name}", "acc", forgery) for name, forgery in ACCURACY.items())
    yield from ((name, "storage", forgery) for name, forgery in ONCE.items())
