"""Turns outcomes into intervals, comparisons and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsebench.benchmarks.statistics import Floats
from sparsebench.ledger import sqlfiles
from sparsebench.ledger.statistics import proportions, resampling, sensitivity, windows
from sparsebench.ledger.statistics.contract import (
    UNEXPLAINED,
    Z95_ONE_SIDED,
    Comparison,
    Integers,
    Interval,
    Metric,
    Pairs,
    VerdictOverrides,
    count_clusters,
    not_compared,
    rows_of_views,
)
from sparsebench.ledger.statistics.proportions import PairedCounts
from sparsebench.ledger.statistics.resampling import RESAMPLES, design_effect

ALONE = "one document, or one cluster of them, does not show how much documents vary"


def interval(metric: str, score: float, values: Floats, labels: Floats, clusters: Integers | None = None) -> Interval:
    """Return the 95% interval of ``score`` from its outcomes ``values`` (n,) and, for pooled metrics, ``labels`` (n,).

    ``clusters`` (n,) numbers the documents' contexts (``encode_clusters``); None where each document has its own.
    """
    if not reproduces_score(metric, score, values, labels):
        return Interval(None, None, f"none: {UNEXPLAINED}")
    n, n_clusters, pooling = len(values), count_clusters(len(values), clusters), Metric.named(metric).pooling
    if pooling == "per token":
        return windows.interval(values, labels, clusters)
    binary = pooling == "mean" and _binary(values)
    if n_clusters < 2 and (clusters is not None or not binary):
        return Interval(None, None, f"none: {ALONE}")
    if binary:
        effect = design_effect(values, clusters)
        return Interval(
            *proportions.wilson(values.sum() / effect, n / effect), f"Wilson{_over_clusters(n_clusters, n)}"
        )
    if pooling == "ranking":
        limits = resampling.average_precision_interval((values, labels), clusters)
        if limits is None:
            return Interval(None, None, "none: leaving out documents does not show how much they vary")
        return Interval(*limits, f"jackknife of the logit{_over_clusters(n_clusters, n)}")
    resampled = resampling.resampled_scores(pooling, [(values, labels)], clusters)[:, 0]
    return Interval(
        *resampling.percentile_interval(resampled, n_clusters),
        f"bootstrap, {RESAMPLES} resamples{_over_clusters(n_clusters, n)}",
    )


def compare(metric: str, pairs: Pairs, chance: float | None = None) -> Comparison:
    """Compare two variants by the outcomes that make up their scores (``reproduces_score`` says whether they do).

    ``chance`` is the best score known to need no skill: the share retained is counted from there.
    """
    n, rules = len(pairs.variant), Metric.named(metric)
    if not n:
        return not_compared("no document in common", rules.higher_is_better)
    if rules.pooling == "per token":
        return windows.compare(pairs, chance)
    binary = rules.pooling == "mean" and _binary(pairs.variant) and _binary(pairs.dense)
    if pairs.cluster_count < 2 and (pairs.cluster_codes is not None or not binary):
        return replace(not_compared(ALONE, rules.higher_is_better), n=n, clusters=1)
    return _counted(rules, pairs, chance) if binary else _bootstrapped(rules, pairs, chance)


def not_reproducible(metric: str) -> Comparison:
    """Return the comparison, without numbers, of scores that do not follow from the outcomes of their documents."""
    return not_compared(UNEXPLAINED, Metric.named(metric).higher_is_better)


def holm_verdicts(
    comparisons: Sequence[Comparison], overrides: Sequence[VerdictOverrides] | None = None
) -> list[tuple[float | None, str | None]]:
    """Return each comparison's p value, with Holm's correction for all of them, and its verdict, as in ``vs_dense``.

    The verdict is ``better``, ``worse`` or ``no difference detected`` at 0.05, None without a p value. ``overrides`` may
    override it with ``invalid``, ``collapsed`` or ``at chance``; an invalid task counts in no family, and has no p.
    """
    overrides = overrides or [VerdictOverrides()] * len(comparisons)
    pairs = list(zip(comparisons, overrides, strict=True))
    columns = {name: [getattr(pair, name) for pair in comparisons] for name in ("difference", "higher_is_better")}
    columns |= {name: [getattr(pair, name) for pair in overrides] for name in ("separable", "collapsed", "at_chance")}
    columns["p"] = [None if override.separable is False else pair.p for pair, override in pairs]
    return [(p, verdict) for p, verdict in rows_of_views(sqlfiles.read("statistics/holm_verdicts"), **columns)]


def at_chance(low: float | None, high: float | None, chance: float | None, higher_is_better: bool) -> bool:
    """Return whether a score's 95% interval reaches the score of a model without skill; False where one is unknown."""
    query = "SELECT _at_chance($low::DOUBLE, $high::DOUBLE, $chance::DOUBLE, $higher_is_better)"
    ((reached,),) = rows_of_views(query, low=low, high=high, chance=chance, higher_is_better=higher_is_better)
    return bool(reached)


def reproduces_score(metric: str, score: float, values: Floats, labels: Floats) -> bool:
    """Return whether ``score`` follows from its outcomes; one that is computed in an unknown way gets no interval."""
    if not len(values):
        return False
    score_of_outcomes = resampling.score(Metric.named(metric).pooling, values, labels)
    return bool(abs(score_of_outcomes - score) <= 1e-6 * max(1.0, abs(score)))


def _counted(metric: Metric, pairs: Pairs, chance: float | None) -> Comparison:
    """Compare 0/1 outcomes by how many documents only one side gets right. Where lower is better, 0 is right."""
    if not metric.higher_is_better:
        pairs = replace(pairs, variant=1 - pairs.variant, dense=1 - pairs.dense)
        chance = None if chance is None else 1 - chance
    n, changes = len(pairs.variant), (pairs.variant - pairs.dense).astype(int)
    n_clusters = pairs.cluster_count
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    both_right = int((pairs.variant * pairs.dense).sum())
    counts = PairedCounts(both_right, gained, lost, n - both_right - gained - lost)
    effect = design_effect(pairs.variant - pairs.dense, pairs.cluster_codes)
    effective = counts.scaled(1 / effect)
    sign = 1 if metric.higher_is_better else -1
    low, high = sorted(sign * end for end in proportions.newcombe(effective))
    cluster_changes = changes
    if pairs.cluster_codes is not None:
        cluster_changes = np.bincount(pairs.cluster_codes, weights=changes).round().astype(int)
    test = "McNemar exact" if n_clusters == n else f"exact sign-flip test{_over_clusters(n_clusters, n)}"
    return Comparison(
        n=n,
        difference=sign * (gained - lost) / n,
        low=low,
        high=high,
        p=proportions.sign_flip(cluster_changes),
        gained=gained,
        lost=lost,
        method=f"{test}, Newcombe interval",
        higher_is_better=metric.higher_is_better,
        clusters=n_clusters,
        detectable=sensitivity.detectable(int(n / effect), (gained + lost) / n),
        loss_at_most=-proportions.newcombe(effective, Z95_ONE_SIDED)[0],
        **_retained_of_counts(counts, pairs, chance),
    )


def _retained_of_counts(counts: PairedCounts, pairs: Pairs, chance: float | None) -> dict[str, Any]:
    if chance is None:
        return {}
    n, dense_right = counts.n, counts.both + counts.lost
    dense_effect = design_effect(pairs.dense, pairs.cluster_codes)
    if proportions.wilson(dense_right / dense_effect, n / dense_effect)[0] <= chance:
        return {}
    ratio = ((counts.both + counts.gained) / n - chance) / (dense_right / n - chance)
    effect = design_effect(pairs.variant - ratio * pairs.dense, pairs.cluster_codes)
    low, high = proportions.retained(counts.scaled(1 / effect), chance)
    return {"retained": ratio, "retained_low": low, "retained_high": high}


def _bootstrapped(metric: Metric, pairs: Pairs, chance: float | None) -> Comparison:
    """Compare all other outcomes by scoring both sides on the same resamples."""
    n, n_clusters = len(pairs.variant), pairs.cluster_count
    resampled = resampling.resampled_scores(metric.pooling, pairs.with_labels, pairs.cluster_codes)
    shifts = resampled[:, 0] - resampled[:, 1]
    low, high = resampling.percentile_interval(shifts, n_clusters)
    lowest, highest = resampling.percentile_interval(shifts, n_clusters, 0.95)
    variant, dense = (resampling.score(metric.pooling, *side) for side in pairs.with_labels)
    retained: dict[str, Any] = {}
    if metric.pooling == "ranking":
        dense_interval = resampling.average_precision_interval(pairs.with_labels[1], pairs.cluster_codes)
    else:
        dense_interval = resampling.percentile_interval(resampled[:, 1], n_clusters)
    if chance is not None and dense_interval and _beats(dense_interval, chance, metric.higher_is_better):
        base = resampled[:, :1] * 0 + chance
        if metric.pooling == "ranking" and chance <= pairs.labels.mean():
            # A random ranking's average precision is the share of true pairs, which differs between resamples.
            chance = float(pairs.labels.mean())
            base = resampling.resampled_scores("mean", [(pairs.labels, pairs.labels)], pairs.cluster_codes)
        over_chance = resampled - base
        # A resample in which dense is exactly at chance retains no share; `quantiles` leaves NaN out.
        variant_gain, dense_gain = over_chance[:, 0], over_chance[:, 1]
        no_share = np.full(len(over_chance), np.nan)
        retained_shares = np.divide(variant_gain, dense_gain, out=no_share, where=dense_gain != 0)
        ratio_low, ratio_high = resampling.percentile_interval(retained_shares, n_clusters)
        ratio = (variant - chance) / (dense - chance)
        retained = {"retained": ratio, "retained_low": ratio_low, "retained_high": ratio_high}
    return Comparison(
        n=n,
        difference=variant - dense,
        low=low,
        high=high,
        p=resampling.p_value(shifts, n_clusters),
        method=f"paired bootstrap, {RESAMPLES} resamples{_over_clusters(n_clusters, n)}",
        higher_is_better=metric.higher_is_better,
        clusters=n_clusters,
        detectable=sensitivity.detectable_from_interval(low, high, n_clusters),
        loss_at_most=-lowest if metric.higher_is_better else highest,
        **retained,
    )


def _beats(interval: tuple[float, float], chance: float, higher_is_better: bool) -> bool:
    return interval[0] > chance if higher_is_better else interval[1] < chance


def _over_clusters(n_clusters: int, n: int) -> str:
    return "" if n_clusters == n else f" over {n_clusters} clusters"


def _binary(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())
