-- The number of blocks in sequence, and at 50% sparsity the error of one block alone and of the last behind all others.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), errors AS (
    SELECT DISTINCT model, weights, words, avg(own) OVER one AS own, arg_max(error, block) OVER one AS error
    FROM outputs o
    JOIN asked USING (variant_id)
    JOIN _recipes USING (variant_id)
    WHERE kind = 'zeros' AND NOT chance AND round(sparsity, 2) = 0.5 AND (side <> 'encoder' OR family = 'encoder')
    WINDOW one AS (PARTITION BY o.variant_id ORDER BY block, record_id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
), nearest AS (
    FROM errors
    QUALIFY row_number() OVER (PARTITION BY model, weights ORDER BY error, words) = 1
)
SELECT DISTINCT model, weights, count(DISTINCT (side, layer)) AS blocks, any_value(words) AS words, any_value(own) AS own,
       any_value(error) AS error
FROM tensors
JOIN asked USING (variant_id)
LEFT JOIN nearest USING (model, weights)
WHERE method = 'dense' AND layer IS NOT NULL
GROUP BY model, weights, variant_id
ORDER BY model, weights, blocks
