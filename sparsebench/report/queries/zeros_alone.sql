-- Zeros alone, by perplexity over dense: the most zeros within a tenth of dense's, and the next sparsity measured.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), zeros AS (
    SELECT z.*, max(sparsity) FILTER (ratio <= 1.1) OVER (PARTITION BY model, weights) AS most FROM _zeros_alone z JOIN asked USING (variant_id)
)
SELECT model, weights, any_value(words) FILTER (sparsity = most) AS words, any_value(share) FILTER (sparsity = most) AS share, any_value(n) FILTER (sparsity = most) AS n,
       min(sparsity) FILTER (sparsity > most) AS next_sparsity, arg_min(n, sparsity) FILTER (sparsity > most) AS next_n, arg_min(ratio, sparsity) FILTER (sparsity > most) AS next_ratio
FROM zeros
WHERE most IS NOT NULL
GROUP BY model, weights
ORDER BY model
