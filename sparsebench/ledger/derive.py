"""What is computed from outcomes, once, when they come in: intervals of scores, and comparisons with the dense model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsebench.ledger import migrate, sqlfiles, statistics

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import numpy.typing as npt


def derive(connection: duckdb.DuckDBPyConnection) -> None:
    """Add the intervals and comparisons that are missing; the dense record may come before or after its variants."""
    for record_id, metric, score in connection.execute(sqlfiles.read("derive/open_intervals")).fetchall():
        data = connection.execute(sqlfiles.read("derive/outcomes"), {"record_id": record_id}).fetchnumpy()
        around = statistics.interval(
            metric, score, _plain(data["value"]), _plain(data["label"]), _clusters(data["cluster"])
        )
        connection.execute(sqlfiles.read("derive/insert_interval"), {"record_id": record_id} | vars(around))
    comparisons = sqlfiles.read("derive/open_comparisons")
    migrate.stand_in(connection, comparisons)
    for record_id, dense_id, metric, explained, chance in connection.execute(
        comparisons, {"unexplained": statistics.none(statistics.UNEXPLAINED).method}
    ).fetchall():
        found = (
            statistics.compare(metric, pairs(connection, record_id, dense_id), chance)
            if explained
            else statistics.none(statistics.UNEXPLAINED)
        )
        ids = {"record_id": record_id, "dense_id": dense_id}
        connection.execute(sqlfiles.read("derive/drop_comparison"), ids)
        connection.execute(sqlfiles.read("derive/insert_comparison"), ids | {"chance": chance} | vars(found))


def pairs(connection: duckdb.DuckDBPyConnection, record_id: str, dense_id: str) -> statistics.Pairs:
    """The outcomes of two records on the documents that both were shown, word for word."""
    ids = {"record_id": record_id, "dense_id": dense_id}
    data = connection.execute(sqlfiles.read("derive/paired_outcomes"), ids).fetchnumpy()
    variant, dense, label, own = (_plain(data[name]) for name in ("variant", "dense", "label", "variant_label"))
    return statistics.Pairs(variant, dense, label, _clusters(data["cluster"]), own)


def _plain(column: Any) -> npt.NDArray[np.float64]:
    """A column of DOUBLE as an array, NULL as NaN."""
    import numpy as np

    return np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)


def _clusters(column: Any) -> npt.NDArray[np.int64] | None:
    """A column of cluster names, NULL for a document of its own, as numbers."""
    import numpy as np

    return statistics.codes(np.ma.asarray(column).tolist())
