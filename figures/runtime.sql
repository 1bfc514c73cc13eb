-- title: Time relative to dense, and peak memory, against sparsity
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
-- note: Times: the variant's over those of the dense model timed beside it, with 95% intervals of the paired ratio; at 0% the dense model against itself: the noise. Memory: the peak above the process's size before the model, summed over ranks; at 0% the dense model.

WITH measured AS (
    SELECT manifest, variant_id, model, weights, method, granularity, pattern, seed, sparsity, engine, ranks, workload, machine, started_at,
           CASE phase WHEN 'decode' THEN 'one more token' WHEN 'forward' THEN 'forward pass' ELSE phase END || ', time / dense' AS measure,
           1 / speedup AS value, 1 / speedup_high AS low, 1 / speedup_low AS high
    FROM latency
    -- Loading is timed once, generating is prefill and decode again.
    WHERE phase NOT IN ('generate', 'load')
    UNION ALL BY NAME
    SELECT manifest, variant_id, model, weights, method, granularity, pattern, seed, sparsity, engine, ranks, workload, machine, started_at,
           'peak memory, MB' AS measure, peak_bytes / 1e6 AS value
    FROM memory
    WHERE phase = 'overall'
), named AS (
    SELECT *, method_label(method, granularity, if(pattern LIKE '%:%', 'N:M', pattern)) || inputs AS how,
           concat(engine, ' ×', ranks, if(count(DISTINCT workload) OVER () > 1, ', ' || workload, ''),
                  if(count(DISTINCT machine) OVER () > 1, ', ' || machine, '')) AS place
    FROM measured
    JOIN ways USING (variant_id)
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
ORDER BY weights = 'random', points.model, list_position(['forward pass, time / dense', 'encode, time / dense', 'prefill, time / dense', 'one more token, time / dense'], measure) NULLS LAST, series,
         sparsity;
