-- title: Score against sparsity
-- finding: finding
-- about: how much of a benchmark's score is left, method by method
-- kind: line
-- x: sparsity
-- y: score
-- low: low
-- high: high
-- series: line
-- place: place
-- facet: panel
-- bound: bound
-- apart: apart
-- reference: chance = chance; dense = dense
-- columns: 2
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: score
-- note: Whiskers: 95% intervals over documents (0/1 outcomes: Wilson; else bootstrap). The point at 0% is the dense model. N:M patterns are points. Only pruned models are shown, each method as usually calibrated; brackets name another calibration, where it has sparsities of its own (d: dense inputs).
-- boundnote: Grey: random masks, the baseline.

WITH shown AS (
    -- Perplexity explodes and has a figure of its own; a task on which dense itself is not above chance shows nothing.
    FROM _pruned_curves WHERE scale <> 'perplexity' AND NOT dense_at_chance
), best AS (
    -- Two metrics of one task are one benchmark; of several samples the largest counts.
    SELECT model, _benchmark(task) AS benchmark, sparsity, bool_and(kept) AS kept
    FROM (SELECT model, task, sparsity, n, bool_or(NOT _lost(verdict)) AS kept FROM shown WHERE pattern = 'unstructured' AND NOT bound AND verdict IS NOT NULL GROUP BY model, task, sparsity, n
          QUALIFY n = max(n) OVER (PARTITION BY model, task, sparsity))
    GROUP BY ALL
)
SELECT sparsity, score, low, high, chance, dense, line, bound, place, panel, apart,
       (SELECT format('By pruning alone, some method shows no loss on {} of {} benchmarks at 50% zeros, on {} of {} at 90% (perplexity apart)',
                      count(*) FILTER (kept AND sparsity = 0.5), nullif(count(*) FILTER (sparsity = 0.5), 0), count(*) FILTER (kept AND sparsity = 0.9), nullif(count(*) FILTER (sparsity = 0.9), 0)) FROM best) AS finding
FROM shown
ORDER BY panel, bound, line, sparsity;
