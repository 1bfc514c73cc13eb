-- title: Retained: what is left of the dense model's skill
-- finding: finding
-- about: the same as score, with chance at 0 and the dense model at 100%, so that benchmarks compare
-- kind: line
-- x: sparsity
-- y: retained
-- low: retained_low
-- high: retained_high
-- series: line
-- place: place
-- facet: panel
-- bound: bound
-- apart: apart
-- reference: zero = chance; one = dense
-- columns: 2
-- xscale: sparsity
-- yscale: percent
-- xlabel: sparsity of the prunable weights, %
-- ylabel: retained, %
-- note: (score - chance) / (dense score - chance). Whiskers: 95% intervals of that ratio, paired by document. Tasks on which the dense model itself is not above chance are left out. N:M patterns are points. Only pruned models are shown, each method as usually calibrated; brackets name another calibration, where it has sparsities of its own (d: dense inputs). How far below chance a model is means little: values below -50% are drawn there.
-- boundnote: Grey: random masks, the baseline: where they retain much, the benchmark does not see the damage.

WITH sampled AS (
    -- Of a task that was scored on several samples: the largest on which 90% zeros or more were, or the largest.
    SELECT *, max(sparsity) OVER (PARTITION BY panel) >= 0.9 AS covered FROM _pruned_curves WHERE retained IS NOT NULL
), shown AS (
    SELECT * EXCLUDE (covered) FROM sampled
    QUALIFY (covered, n) = max((covered, n)) OVER (PARTITION BY model, weights, task, metric)
    -- A line whose variants are left out would be its dense point alone.
        AND max(sparsity) OVER (PARTITION BY panel, line) > 0
), best AS (
    SELECT model, task, sparsity, max(retained) AS retained, arg_max(coalesce(retained_low, retained), retained) AS low
    FROM shown
    WHERE pattern = 'unstructured' AND NOT bound
    GROUP BY ALL
), benchmarks AS (
    -- Two metrics of one task are one benchmark, at chance where both are.
    SELECT model, _benchmark(task) AS benchmark, bool_and(low <= 0) AS lost FROM best WHERE sparsity = 0.9 GROUP BY ALL
)
SELECT sparsity, if(retained < -0.5, -0.5, retained) AS retained, if(retained_low < -0.5, -0.5, retained_low) AS retained_low, if(retained_high < -0.5, -0.5, retained_high) AS retained_high, 0 AS zero, 1 AS one, line, bound, place, panel, apart,
       (SELECT format('With pruning alone the best method keeps {}% of dense''s score above chance at 50% zeros; at 90% it is at chance on {} of the {} benchmarks that have a chance level',
                      range_label('{:.0f}', 100 * min(retained) FILTER (sparsity = 0.5), 100 * max(retained) FILTER (sparsity = 0.5)),
                      (SELECT count(*) FROM benchmarks WHERE lost), (SELECT count(*) FROM benchmarks)) FROM best) AS finding
FROM shown
ORDER BY panel, bound, line, sparsity;
