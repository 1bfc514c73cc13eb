-- How unevenly a variant's zeros lie: the blocks that lost least and most, where they differ by more than a point.
SELECT model, weights, concat_ws(' ', method, nullif(granularity, '')) || inputs AS label, sparsity, min(zero_share) AS lowest,
       max(zero_share) AS highest
FROM structure
JOIN ways USING (variant_id)
WHERE scope = 'layer' AND method <> 'dense' AND pattern = 'unstructured' AND weights <> 'random' /* manifests */
GROUP BY variant_id, model, weights, method, granularity, inputs, sparsity
HAVING highest - lowest > 0.01
ORDER BY model, method, label, sparsity, variant_id
