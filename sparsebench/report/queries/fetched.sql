-- Each model's own file, as it was fetched, beside the dense one made from it, and the sparsity from which pruned files are smaller than
-- the fetched one.
WITH fetched AS (
    SELECT model, weights, bytes, share
    FROM sizes
    WHERE format = 'source' /* manifests */
    QUALIFY row_number() OVER (PARTITION BY model, weights ORDER BY manifest) = 1
)
SELECT f.model, f.weights, f.bytes, f.share, min(s.sparsity) FILTER (s.format = 'packed' AND s.bytes < f.bytes) AS packed_from,
       min(s.sparsity) FILTER (s.format = 'archive' AND s.bytes < f.bytes) AS archive_from, max(s.sparsity) AS largest
FROM fetched f
LEFT JOIN sizes s ON s.model = f.model AND s.weights = f.weights AND s.method NOT IN ('dense', 'random') AND s.pattern = 'unstructured' AND s.sparsity > 0
GROUP BY f.model, f.weights, f.bytes, f.share
ORDER BY f.model
