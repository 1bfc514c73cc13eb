-- How unevenly a variant's zeros are spread: the blocks that lost least and most, where they differ by more than a point, the matrices
-- that lost most, and the changes of the scores.
SELECT model, weights, method_label(method, granularity, 'unstructured') || way AS label, sparsity, 
       min(zero_share) FILTER (scope = 'layer') AS lowest, max(zero_share) FILTER (scope = 'layer') AS highest,
       max(zero_share) FILTER (scope = 'layer and kind') AS fullest,
       count(DISTINCT concat_ws(' ', side, kind, layer)) FILTER (scope = 'layer and kind' AND zero_share >= 0.999) AS emptied,
       count(DISTINCT concat_ws(' ', side, kind, layer)) FILTER (scope = 'layer and kind') AS matrices, any_value(moved) AS moved,
       arg_max(concat_ws(' ', CASE WHEN family = 'encoder-decoder' THEN nullif(side, '') END, kind, 'of block', layer),
           (zero_share, side, kind, layer))
           FILTER (scope = 'layer and kind') AS fullest_at
FROM structure
JOIN ways USING (variant_id)
LEFT JOIN (SELECT variant_id,
    replace(string_agg(DISTINCT format('{} {:+.3f}', task, difference), ', ' ORDER BY format('{} {:+.3f}', task, difference)),
                                      ' -', ' −') AS moved
           FROM (FROM vs_dense QUALIFY row_number() OVER (PARTITION BY variant_id, task ORDER BY pairs DESC, manifest) = 1)
           WHERE metric NOT IN (SELECT metric FROM metrics WHERE scale = 'perplexity') GROUP BY variant_id) USING (variant_id)
WHERE scope IN ('layer', 'layer and kind') AND method <> 'dense' AND pattern = 'unstructured' AND weights <> 'random' /* manifests */
      -- Weights that a quantizer rounds to zero were not removed by a threshold.
      AND variant_id NOT IN (FROM _more_than_zeros)
GROUP BY variant_id, model, weights, method, granularity, way, sparsity
HAVING highest - lowest > 0.01
ORDER BY model, method, label, sparsity, variant_id
