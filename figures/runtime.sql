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

WITH measured AS (
    SELECT manifest, model, weights, method, granularity, pattern, seed, sparsity, engine, ranks, workload, machine, started_at,
           CASE phase WHEN 'decode' THEN 'one more token, ms' WHEN 'forward' THEN 'forward pass, ms' ELSE phase || ', ms' END AS measure,
           ms AS value, low_ms AS low, high_ms AS high
    FROM latency
    WHERE phase <> 'generate'
    UNION ALL BY NAME
    SELECT manifest, model, weights, method, granularity, pattern, seed, sparsity, engine, ranks, workload, machine, started_at,
           'peak memory, MB' AS measure, peak_bytes / 1e6 AS value
    FROM memory
    WHERE phase = 'overall'
), named AS (
    SELECT *, method_label(method, granularity, if(pattern = 'unstructured', pattern, 'N:M')) AS how,
           concat(engine, ' ×', ranks, if(count(DISTINCT workload) OVER () > 1, ', ' || workload, ''),
                  if(count(DISTINCT machine) OVER () > 1, ', ' || machine, '')) AS place
    FROM measured
), lines AS (
    SELECT *, how || if(count(DISTINCT seed) OVER () > 1, ', seed ' || seed, '') AS line FROM named WHERE method <> 'dense'
), points AS (
    FROM lines
    UNION ALL BY NAME
    -- Every line begins at the dense model.
    SELECT d.*, coalesce(l.line, 'dense') AS line
    FROM named d
    LEFT JOIN (SELECT DISTINCT manifest, model, place, measure, line FROM lines) l USING (manifest, model, place, measure)
    WHERE d.method = 'dense'
)
SELECT sparsity, value, low, high, concat(line, ', ', place) AS series, model_label(model, weights) AS model,
       concat(model_label(model, weights), chr(10), measure) AS facet
FROM points
QUALIFY row_number() OVER (PARTITION BY facet, series, sparsity ORDER BY started_at DESC, manifest) = 1
ORDER BY model, list_position(['forward pass, ms', 'encode, ms', 'prefill, ms', 'one more token, ms'], measure) NULLS LAST, series,
         sparsity;
