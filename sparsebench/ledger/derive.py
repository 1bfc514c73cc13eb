"""Computes the intervals of scores and the comparisons with the dense model, once, when outcomes are ingested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt

from sparsebench.ledger import schema, sqlfiles, statistics
from sparsebench.ledger.batches import batched

DOCUMENTS_AT_ONCE = 1_000_000
"""Documents whose outcomes are in memory at once, at least those of one score. A query for each score would be slow."""


class OpenInterval(NamedTuple):
    """A score whose interval is missing."""

    record_id: str
    metric: str
    score: float
    documents: int


class OpenComparison(NamedTuple):
    """A comparison with the dense model that is missing; ``explained``: whether outcomes make up both scores."""

    record_id: str
    dense_id: str
    metric: str
    explained: bool
    chance: float | None
    documents: int


def derive(connection: duckdb.DuckDBPyConnection) -> None:
    """Add the intervals and comparisons that are missing; the dense record may come before or after its variants."""
    scores = connection.execute(sqlfiles.read("derive/open_intervals")).fetchall()
    for part in batched([OpenInterval(*row) for row in scores], lambda row: row.documents, DOCUMENTS_AT_ONCE):
        _add_intervals(connection, part)
    comparisons = sqlfiles.read("derive/open_comparisons")
    schema.create_temp_views(connection, comparisons, set())
    unexplained = {"unexplained": statistics.not_compared(statistics.UNEXPLAINED).method}
    rows = connection.execute(comparisons, unexplained).fetchall()
    for missing in batched([OpenComparison(*row) for row in rows], lambda row: row.documents, DOCUMENTS_AT_ONCE):
        _add_comparisons(connection, missing)


def _add_intervals(connection: duckdb.DuckDBPyConnection, scores: Sequence[OpenInterval]) -> None:
    ids = {"record_id": [row.record_id for row in scores]}
    intervals = [
        statistics.interval(row.metric, row.score, data["value"], data["label"], data["cluster"])
        for row, data in zip(scores, _rows_of_each(connection, "derive/outcomes", ids), strict=True)
    ]
    connection.execute(sqlfiles.read("derive/insert_intervals"), ids | _columns(intervals))


def _add_comparisons(connection: duckdb.DuckDBPyConnection, missing: Sequence[OpenComparison]) -> None:
    outcomes = pairs(connection, [(row.record_id, row.dense_id) for row in missing if row.explained])
    comparisons = [
        statistics.compare(row.metric, next(outcomes), row.chance)
        if row.explained
        else statistics.not_reproducible(row.metric)
        for row in missing
    ]
    ids = {"record_id": [row.record_id for row in missing], "dense_id": [row.dense_id for row in missing]}
    chances = {"chance": [row.chance for row in missing]}
    connection.execute(sqlfiles.read("derive/drop_comparisons"), ids)
    connection.execute(sqlfiles.read("derive/insert_comparisons"), ids | chances | _columns(comparisons))


def pairs(connection: duckdb.DuckDBPyConnection, ids: Sequence[tuple[str, str]]) -> Iterator[statistics.Pairs]:
    """Yield the outcomes of each pair of records, a variant's and a dense one's, on the documents shown to both.

    Both models must have been shown a document word for word the same.
    """
    columns = {"record_id": [variant for variant, _ in ids], "dense_id": [dense for _, dense in ids]}
    for data in _rows_of_each(connection, "derive/paired_outcomes", columns):
        yield statistics.Pairs(data["variant"], data["dense"], data["label"], data["cluster"], data["variant_label"])


def _rows_of_each(
    connection: duckdb.DuckDBPyConnection, query: str, ids: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """Yield each id's rows of a query, by column; NULL becomes NaN.

    The query's column ``input_number`` says which of the ids, from 1, a row belongs to; its rows are in that order.
    """
    data = connection.execute(sqlfiles.read(query), ids).fetchnumpy()
    owner, cluster = data.pop("input_number"), np.ma.asarray(data.pop("cluster"))
    columns = {name: np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan) for name, column in data.items()}
    ends = np.searchsorted(owner, np.arange(1, len(next(iter(ids.values()))) + 1), side="right").tolist()
    for start, end in pairwise([0, *ends]):
        yield {name: column[start:end] for name, column in columns.items()} | {"cluster": _clusters(cluster[start:end])}


def _clusters(names: np.ma.MaskedArray[Any, Any]) -> npt.NDArray[np.int64] | None:
    """Number a column of cluster names; NULL is a cluster of its own. None when no two documents share a cluster."""
    return None if np.ma.getmaskarray(names).all() else statistics.encode_clusters(names.tolist())


def _columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in vars(rows[0])}
