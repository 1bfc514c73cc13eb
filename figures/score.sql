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
-- note: Whiskers: 95% intervals over documents (0/1 outcomes: Wilson; else bootstrap). The point at 0% is the dense model. N:M patterns are points. Only pruned models are shown, each method as first calibrated (docs/results.md).
-- boundnote: Grey: random masks, the baseline.

WITH shown AS (
    -- Perplexity explodes and has a figure of its own; a task on which dense itself is not above chance shows nothing.
    FROM _pruned_curves WHERE scale <> 'perplexity' AND NOT dense_at_chance
), best AS (
    SELECT panel, sparsity, bool_or(NOT _lost(verdict)) AS kept FROM shown WHERE pattern = 'unstructured' AND NOT bound AND verdict IS NOT NULL GROUP BY ALL
)
SELECT sparsity, score, low, high, chance, dense, line, bound, place, panel, apart,
       (SELECT format('By pruning alone, some method shows no loss on {} of {} tasks at 50% zeros, on {} of {} at 90%',
                      count(*) FILTER (kept AND sparsity = 0.5), nullif(count(*) FILTER (sparsity = 0.5), 0), count(*) FILTER (kept AND sparsity = 0.9), nullif(count(*) FILTER (sparsity = 0.9), 0)) FROM best) AS finding
FROM shown
ORDER BY panel, bound, line, sparsity;
