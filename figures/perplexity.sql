-- title: Perplexity against sparsity
-- finding: finding
-- about: where language modelling breaks, method by method
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
-- note: Whiskers: 95% intervals, by Student's t over windows. The point at 0% is the dense model. N:M patterns are points. Only pruned models are shown, each method as first calibrated (docs/results.md).
-- boundnote: Grey: random masks, which know nothing.
-- note: Above 10,000 a model has collapsed, and the order of methods means nothing: that part of the axis is packed together.

WITH shown AS (
    -- Of a method that was calibrated in several ways, the usual one; the others have a figure of their own.
    SELECT panel, c.line, method_label(method, if(pattern LIKE '%:%', '', granularity), if(pattern LIKE '%:%', 'N:M', 'unstructured')) AS short
    FROM curves c
    JOIN ways USING (variant_id)
    WHERE NOT resized AND method <> 'dense' AND variant_id NOT IN (FROM _more_than_zeros)
    GROUP BY panel, c.line, method, granularity, pattern LIKE '%:%'
    QUALIFY rank() OVER (PARTITION BY panel, method, granularity, pattern LIKE '%:%' ORDER BY min(text_number), min(inputs)) = 1
), named AS (
    -- Without how it was calibrated, so that a method has one name in all panels.
    SELECT panel, line, if(count(*) OVER (PARTITION BY panel, short) = 1, short, line) AS name FROM shown
), best AS (
    SELECT panel, sparsity, min(score / dense) AS ratio
    FROM curves
    WHERE scale = 'perplexity' AND pattern = 'unstructured' AND NOT bound AND (panel, line) IN (SELECT (panel, line) FROM named)
    GROUP BY ALL
)
SELECT sparsity, score, low, high, dense, CASE WHEN max(score) OVER (PARTITION BY panel) > collapsed_above / 2 THEN collapsed_above END AS collapsed, name AS line, bound, min(place) OVER (PARTITION BY name) AS place, panel, bool_or(pattern LIKE '%:%') OVER (PARTITION BY panel, name) AS apart,
       (SELECT format('With pruning alone the best method has {} times the dense perplexity at 50% zeros, at 90% at least {:,.0f} times',
                      range_label('{:.1f}', min(ratio) FILTER (sparsity = 0.5), max(ratio) FILTER (sparsity = 0.5)), min(ratio) FILTER (sparsity = 0.9)) FROM best) AS finding
FROM curves
JOIN metrics USING (metric)
JOIN named USING (panel, line)
WHERE NOT resized AND curves.scale = 'perplexity'
QUALIFY sparsity > 0 OR NOT apart
ORDER BY panel, bound, line, sparsity;
