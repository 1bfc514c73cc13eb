-- Models with random weights of their true shapes: the dense file, and the packed one at 90% zeros over it.
WITH asked AS (
    SELECT DISTINCT variant_id, model FROM cells WHERE weights = 'random' /* manifests */
)
SELECT model, max(bytes) FILTER (format = 'dense' AND method = 'dense') AS bytes,
       min(share) FILTER (format = 'packed' AND round(sparsity, 2) = 0.9) AS packed
FROM sizes
JOIN asked USING (variant_id, model)
GROUP BY model
ORDER BY bytes
