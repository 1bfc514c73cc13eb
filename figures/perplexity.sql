-- title: Perplexity against sparsity
-- finding: finding
-- about: where perplexity rises and where models collapse, method by method
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
-- reference: dense = dense; collapsed = collapsed
-- columns: 2
-- yscale: log
-- knee: 10000
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: perplexity (lower is better)
-- note: Whiskers: 95% intervals, by Student's t over windows. The point at 0% is the dense model. N:M patterns are points. Only pruned models are shown, each method as usually calibrated; brackets name another calibration, where it has sparsities of its own (d: dense inputs).
-- boundnote: Grey: random masks, the baseline; lines with a sparsity for each block (+owl).
-- note: Above 10,000 a model has collapsed, and the order of methods means nothing: that part of the axis is packed together.

WITH shown AS (
    -- Colours are left to the methods.
    SELECT * REPLACE (bound OR line LIKE '%+owl%' AS bound), bound AS floor FROM _pruned_curves WHERE scale = 'perplexity'
), best AS (
    -- Of a model's samples, the title tells of the largest.
    SELECT model, sparsity, min(score / dense) AS ratio
    FROM (FROM shown WHERE pattern = 'unstructured' AND NOT floor QUALIFY n = max(n) OVER (PARTITION BY model, weights))
    GROUP BY ALL
)
SELECT sparsity, score, low, high, dense, CASE WHEN max(score) OVER (PARTITION BY panel) > collapsed_above / 2 THEN collapsed_above END AS collapsed, line, bound, place, panel, apart,
       (SELECT format('{}, on the largest sample: the best pruning alone has {} times dense''s perplexity at 50% zeros, at 90% at least {:,.0f} times',
                      string_agg(DISTINCT model, ' and ' ORDER BY model), range_label('{:.1f}', min(ratio) FILTER (sparsity = 0.5), max(ratio) FILTER (sparsity = 0.5)), min(ratio) FILTER (sparsity = 0.9)) FROM best) AS finding
FROM shown
JOIN metrics USING (metric)
ORDER BY panel, bound, line, sparsity;
