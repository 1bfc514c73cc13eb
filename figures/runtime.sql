-- title: Latency and peak memory against sparsity
-- kind: line
-- x: sparsity
-- y: value
-- low: low
-- high: high
-- series: series
-- facet: facet
-- row: model
-- ymin: 0
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- note: Whiskers: 95% bootstrap intervals of the median. The point at 0% is the dense model. Memory is the peak above the process's size before the model, summed over ranks.

WITH timed AS (
    SELECT manifest, model, weights, method, method_label(method, granularity, pattern) AS how, sparsity, engine, ranks, workload,
           CASE phase WHEN 'decode' THEN 'one more token, ms' WHEN 'forward' THEN 'forward pass, ms' ELSE phase || ', ms' END AS measure,
           ms AS value, low_ms AS low, high_ms AS high
    FROM latency
    WHERE phase <> 'generate'
    UNION ALL
    SELECT manifest, model, weights, method, method_label(method, granularity, pattern), sparsity, engine, ranks, workload,
           'peak memory, MB', peak_bytes / 1e6, NULL, NULL
    FROM memory
    WHERE phase = 'overall'
), lines AS (
    FROM timed
    WHERE method <> 'dense'
    UNION ALL
    -- Every line begins at the dense model.
    SELECT DISTINCT d.manifest, d.model, d.weights, d.method, coalesce(v.how, 'dense'), d.sparsity, d.engine, d.ranks, d.workload,
           d.measure, d.value, d.low, d.high
    FROM timed d
    LEFT JOIN timed v ON v.method <> 'dense' AND v.manifest = d.manifest AND v.model = d.model AND v.engine = d.engine
                     AND v.ranks = d.ranks AND v.workload = d.workload AND v.measure = d.measure
    WHERE d.method = 'dense'
)
SELECT sparsity, any_value(value) AS value, any_value(low) AS low, any_value(high) AS high,
       concat(how, ', ', engine, ' ×', ranks, if(count(DISTINCT workload) OVER () > 1, ', ' || workload, '')) AS series,
       model_label(model, weights) AS model, concat(model_label(model, weights), chr(10), measure) AS facet
FROM lines
GROUP BY how, engine, ranks, workload, lines.model, weights, measure, sparsity
ORDER BY model, list_position(['forward pass, ms', 'encode, ms', 'prefill, ms', 'one more token, ms'], measure) NULLS LAST, series, sparsity;
