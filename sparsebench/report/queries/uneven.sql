-- How unevenly a variant's zeros lie: the blocks that lost least and most, where they differ by more than a point, and the matrices
-- that lost most.
SELECT model, weights, concat_ws(' ', method, nullif(granularity, '')) || way AS label, sparsity, 
       min(zero_share) FILTER (scope = 'layer') AS lowest, max(zero_share) FILTER (scope = 'layer') AS highest,
       max(zero_share) FILTER (scope = 'layer and kind') AS fullest,
       arg_max(concat_ws(' ', CASE WHEN family = 'encoder-decoder' THEN nullif(side, '') END, kind, 'of block', layer), zero_share)
           FILTER (scope = 'layer and kind') AS fullest_at
FROM structure
JOIN ways USING (variant_id)
WHERE scope IN ('layer', 'layer and kind') AND method <> 'dense' AND pattern = 'unstructured' AND weights <> 'random' /* manifests */
GROUP BY variant_id, model, weights, method, granularity, way, sparsity
HAVING highest - lowest > 0.01
ORDER BY model, method, label, sparsity, variant_id
