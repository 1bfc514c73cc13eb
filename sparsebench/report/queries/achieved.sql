-- The sparsity asked for, and the zeros counted in the written files: over the prunable weights, over all parameters.
WITH made AS (
    SELECT DISTINCT variant_id, model, weights, method, granularity, pattern, sparsity, seed, achieved_sparsity
    FROM results
    WHERE method <> 'dense' AND sparsity IS NOT NULL AND achieved_sparsity IS NOT NULL
        AND variant_id NOT IN (FROM _more_than_zeros) /* manifests */
          -- A training that helped nowhere keeps the weights that it began with: they are another method's, byte for byte.
          AND variant_id NOT IN (
              SELECT t.variant_id FROM variants t JOIN variants p ON p.model = t.model AND p.content = t.content AND p.trained_tokens IS NULL
              WHERE t.trained_tokens > 0
          )
), everything AS (
    SELECT DISTINCT variant_id, zero_share FROM structure WHERE scope = 'all'
)
SELECT model, weights, split_part(method, '+', 1) AS method, method_label(method, granularity, pattern) || way AS label, pattern,
       sparsity, seed,
       achieved_sparsity, abs(achieved_sparsity - sparsity) AS off, zero_share AS achieved_all
FROM made
LEFT JOIN everything USING (variant_id)
JOIN ways USING (variant_id)
ORDER BY weights = 'random', model, method, pattern <> 'unstructured', label, sparsity, seed
