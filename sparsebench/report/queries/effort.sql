-- What it took to make the variants; the versions of one sweep share its time.
WITH made AS (
    SELECT DISTINCT record_id, variant_id, s.seconds / s.sweep_size AS seconds
    FROM base.sparsify s
    JOIN base.records USING (record_id)
    WHERE status = 'done' /* manifests */
)
SELECT model, weights, method, count(DISTINCT variant_id) AS variants, sum(seconds) AS seconds
FROM made
JOIN base.variants USING (variant_id)
GROUP BY model, weights, method
ORDER BY weights = 'random', model, method
