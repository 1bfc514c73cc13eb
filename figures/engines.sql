-- title: Where zeros save time: each engine against the dense model
-- kind: line
-- x: sparsity
-- y: value
-- low: low
-- high: high
-- series: series
-- facet: facet
-- reference: dense = dense
-- ymin: 0
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: time / dense in transformers
-- note: One process. Paired ratios with 95% intervals; at 0% the dense model against itself: the noise. int8 is not paired: its time over that of plain transformers in a job of its own. Zeros save time where a line is below 1, and beat the obvious rival where it is below int8.

WITH plain AS (
    SELECT manifest, model, workload, machine, phase, any_value(ms) AS plain_ms FROM latency WHERE engine = 'hf' AND method = 'dense' GROUP BY ALL
), measured AS (
    SELECT l.*, method_label(method, granularity, if(pattern LIKE '%:%', 'N:M', pattern)) || inputs AS how,
           count(DISTINCT engine) OVER (PARTITION BY manifest, model, workload, machine) AS engines,
           CASE engine WHEN 'hf' THEN 'transformers' WHEN 'deepspeed' THEN 'DeepSpeed' WHEN 'sparse' THEN 'sparse kernels'
                       ELSE engine END AS name,
           if(engine = 'int8', ms / plain_ms, 1 / speedup) AS value, if(engine = 'int8', low_ms / plain_ms, 1 / speedup_high) AS low,
           if(engine = 'int8', high_ms / plain_ms, 1 / speedup_low) AS high
    FROM latency l
    JOIN ways USING (variant_id)
    LEFT JOIN plain USING (manifest, model, workload, machine, phase)
    WHERE phase IN ('forward', 'encode', 'prefill', 'decode') AND ranks = 1
    QUALIFY engines > 1
), lines AS (
    SELECT *, name || if(count(DISTINCT how) OVER () > 1, ', ' || how, '') AS series FROM measured WHERE method <> 'dense'
), points AS (
    FROM lines
    UNION ALL BY NAME
    -- Every line begins at the dense model.
    SELECT d.*, coalesce(l.series, name) AS series
    FROM measured d
    LEFT JOIN (SELECT DISTINCT manifest, model, engine, workload, machine, series FROM lines) l USING (manifest, model, engine, workload, machine)
    WHERE d.method = 'dense'
), named AS (
    SELECT *, concat(model_label(model, weights), chr(10),
                     CASE phase WHEN 'decode' THEN 'one more token' WHEN 'forward' THEN 'forward pass' ELSE phase END, ', ', workload,
                     if(count(DISTINCT machine) OVER () > 1, ', ' || machine, '')) AS facet
    FROM points
    WHERE value IS NOT NULL
)
SELECT sparsity, value, low, high, series, facet, 1 AS dense
FROM named
QUALIFY row_number() OVER (PARTITION BY facet, series, sparsity ORDER BY started_at DESC, manifest) = 1
ORDER BY weights = 'random', model, list_position(['decode', 'prefill', 'encode', 'forward'], phase), series, sparsity;
