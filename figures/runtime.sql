-- title: Speed-up over dense by engine and ranks
-- about: what sparsity does to the time of each phase, for every engine and number of ranks
-- kind: line
-- x: sparsity
-- y: speedup
-- low: speedup_low
-- high: speedup_high
-- series: series
-- facet: panel
-- mark: first_faster
-- reference: dense = break-even
-- columns: 2
-- ymin: 0
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: speed-up over dense
-- note: Paired with the dense model in the same engine and job, 95% intervals; at 0% the dense model against itself: the noise. Ring: the lowest sparsity that is faster beyond interval and noise. int8 is compared with dense in plain transformers.

WITH chosen AS (
    SELECT *, count(DISTINCT line) FILTER (method <> 'dense') OVER () > 1 AS several,
           sparsity = min(sparsity) FILTER (verdict = 'faster' AND paired) OVER (PARTITION BY panel, engine, ranks, line) AS first_faster
    FROM speedups
)
SELECT sparsity, speedup, speedup_low, speedup_high, engine_label(engine, ranks) || if(several AND line <> 'dense', ', ' || line, '') AS series,
       panel, coalesce(first_faster, false) AS first_faster, 1 AS dense
FROM chosen
ORDER BY weights = 'random', model, list_position(['forward', 'encode', 'prefill', 'decode'], phase), panel, series, sparsity;
