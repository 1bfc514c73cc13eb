-- Each model under DeepSpeed, on one rank: milliseconds of its prompt and of a token (an encoder: of a pass) and the peak of memory, for
-- dense (sparsity 0) and for the sparse variants, each in its own job. Jobs of one setting differ by a few percent.
WITH asked AS (
    SELECT DISTINCT variant_id, model FROM cells WHERE status = 'done' /* manifests */
    AND variant_id NOT IN (FROM _more_than_zeros)
), timed AS (
    SELECT model, weights, workload, round(sparsity, 4) AS sparsity, bool_or(method <> 'dense') AS pruned,
           median(ms) FILTER (phase IN ('encode', 'prefill')) AS prompt, median(ms) FILTER (phase IN ('decode', 'forward')) AS each, bool_or(phase = 'forward') AS whole
    FROM latency
    JOIN asked USING (variant_id, model)
    WHERE engine = 'deepspeed' AND ranks = 1
    GROUP BY ALL
), held AS (
    SELECT model, weights, workload, round(sparsity, 4) AS sparsity, median(peak_bytes) AS peak
    FROM memory
    JOIN asked USING (variant_id, model)
    WHERE engine = 'deepspeed' AND ranks = 1 AND phase = 'overall' AND rank IS NULL
    GROUP BY ALL
)
SELECT model, weights, regexp_extract(workload, 'p(\d+)', 1) AS tokens, sparsity, prompt, each, whole, peak
FROM timed
FULL JOIN held USING (model, weights, workload, sparsity)
WHERE sparsity IN (0, 0.1, 0.5, 0.9, 0.95, 0.99)
ORDER BY weights = 'random', model, sparsity
