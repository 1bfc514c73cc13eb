-- Each model under DeepSpeed, on one rank and on more: milliseconds of its prompt and of a token (an encoder: of a pass), how many times
-- as fast as dense in the same job each is, and the peak of memory of the largest rank (`peak_change`: its distance from dense's, a share),
-- for dense (sparsity 0) and for the sparse variants. The comparisons are counted, and those faster beyond the noise; `unclear` are those
-- that may hide a gain. A setting is `clear` where one of its sparse variants has no such comparison. The prompt of an encoder-decoder is
-- what its encoder reads.
WITH asked AS (
    SELECT DISTINCT variant_id, model FROM cells WHERE status = 'done' /* manifests */
    AND variant_id NOT IN (FROM _more_than_zeros)
), runs AS (
    SELECT * REPLACE (round(sparsity, 4) AS sparsity),
           phase = 'encode' OR phase = 'prefill' AND family <> 'encoder-decoder' AS reads,
           phase IN ('decode', 'forward') AS writes,
           method <> 'dense' AND phase NOT IN ('load', 'generate') AND speedup IS NOT NULL AS compared
    FROM latency
    JOIN asked USING (variant_id, model)
    WHERE engine = 'deepspeed'
    QUALIFY row_number() OVER (PARTITION BY record_id, phase ORDER BY manifest) = 1
), timed AS (
    SELECT model, weights, ranks, workload, sparsity, max(threads) AS threads, median(ms) FILTER (reads) AS prompt,
           median(ms) FILTER (writes) AS each,
           median(speedup) FILTER (compared AND reads) AS prompt_speedup, median(speedup) FILTER (compared AND writes) AS each_speedup,
           count(*) FILTER (compared) AS comparisons, count(*) FILTER (compared AND verdict = 'faster') AS faster,
           count(*) FILTER (compared
               AND (verdict IN ('not steady', 'no noise floor') OR verdict = 'no difference detected'
                   AND resolution > 0.2)) AS unclear
    FROM runs
    GROUP BY ALL
), weighed AS (
    SELECT m.model, m.weights, m.ranks, m.workload, round(m.sparsity, 4) AS sparsity, record_id,
           if(m.ranks = 1, max(peak_bytes) FILTER (phase = 'overall' AND rank IS NULL),
               max(peak_bytes) FILTER (phase <> 'load' AND rank IS NOT NULL)) AS peak
    FROM memory m
    JOIN asked USING (variant_id, model)
    WHERE engine = 'deepspeed'
    GROUP BY m.model, m.weights, m.ranks, m.workload, round(m.sparsity, 4), record_id
), held AS (
    SELECT model, weights, ranks, workload, sparsity, median(peak) AS peak FROM weighed GROUP BY ALL
)
SELECT model, weights, ranks, threads, regexp_extract(workload, 'p(\d+)', 1) AS tokens, sparsity, prompt, each, prompt_speedup, each_speedup,
       coalesce(comparisons, 0) AS comparisons, coalesce(faster, 0) AS faster, coalesce(unclear, 0) AS unclear, peak,
       abs(peak / any_value(peak) FILTER (sparsity = 0) OVER (PARTITION BY model, weights, ranks, workload) - 1) AS peak_change,
       bool_or(coalesce(timed.unclear, 0) = 0 AND sparsity > 0) OVER (PARTITION BY model, weights, ranks, workload) AS clear
FROM timed
FULL JOIN held USING (model, weights, ranks, workload, sparsity)
ORDER BY weights = 'random', model, ranks, tokens, sparsity
