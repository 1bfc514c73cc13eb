-- Models with random weights of their true shapes: size, time and memory alone, on one rank. Times are of the dense model.
WITH asked AS (
    SELECT DISTINCT variant_id, model FROM cells WHERE weights = 'random' /* manifests */
), timed AS (
    SELECT model, median(dense_ms) FILTER (phase IN ('forward', 'decode')) AS each_ms, median(dense_ms) FILTER (phase IN ('encode', 'prefill')) AS prompt_ms,
           count(*) FILTER (verdict = 'faster' AND phase <> 'load') AS faster, count(*) FILTER (verdict IS NOT NULL AND phase <> 'load') AS compared, any_value(machine) AS machine
    FROM latency
    JOIN asked USING (variant_id, model)
    WHERE ranks = 1
    GROUP BY model
), stored AS (
    SELECT model, max(bytes) FILTER (format = 'dense' AND method = 'dense') AS bytes, min(share) FILTER (format = 'packed' AND round(sparsity, 2) = 0.9) AS packed
    FROM sizes
    JOIN asked USING (variant_id, model)
    GROUP BY model
), held AS (
    SELECT model, max(peak_bytes) FILTER (method = 'dense') AS peak FROM memory JOIN asked USING (variant_id, model) WHERE phase = 'overall' AND rank IS NULL AND ranks = 1 GROUP BY model
)
SELECT * FROM stored LEFT JOIN timed USING (model) LEFT JOIN held USING (model) ORDER BY bytes
