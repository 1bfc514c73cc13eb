-- Each model's own file, as it was fetched, beside the dense one made from it, and the sparsity from which packed files of pruned variants
-- are smaller than the fetched one.
WITH fetched AS (
    SELECT model, weights, bytes, share
    FROM sizes
    WHERE format = 'source' /* manifests */
    QUALIFY row_number() OVER (PARTITION BY model, weights ORDER BY manifest) = 1
)
SELECT f.model, f.weights, f.bytes, f.share, min(s.sparsity) FILTER (s.bytes < f.bytes) AS packed_from
FROM fetched f
LEFT JOIN (FROM sizes WHERE format = 'packed' AND pattern = 'unstructured' AND sparsity > 0 AND method <> 'random'
    AND variant_id NOT IN (FROM _more_than_zeros)) s
    ON s.model = f.model AND s.weights = f.weights
GROUP BY f.model, f.weights, f.bytes, f.share
ORDER BY f.model
