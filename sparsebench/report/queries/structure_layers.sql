-- How the share far from zero varies over blocks and kinds of module, at the threshold nearest to 0.1 rms; `most`: the largest share near
-- zero in one matrix.
WITH dense AS (
    SELECT DISTINCT model, weights, variant_id, scope, threshold, far_share,
           concat_ws(' ', CASE WHEN family = 'encoder-decoder' THEN side END, 'block ' || layer) AS block,
           concat_ws(' ', CASE WHEN family = 'encoder-decoder' THEN side END, kind) AS module, concat(module, ' of block ', layer) AS matrix
    FROM structure
    WHERE method = 'dense' AND scale = 'relative'
      AND (scope <> 'kind' OR (variant_id, kind) IN (SELECT (variant_id, kind) FROM structure WHERE scope = 'layer and kind')) /* manifests */
    QUALIFY rank() OVER (PARTITION BY variant_id ORDER BY abs(ln(threshold / 0.1))) = 1
)
SELECT DISTINCT model, weights, threshold, max(far_share) FILTER (scope = 'prunable') AS far,
       min(far_share) FILTER (scope = 'layer') AS lowest, arg_min(block, (far_share, block)) FILTER (scope = 'layer') AS lowest_at,
       max(far_share) FILTER (scope = 'layer') AS highest, arg_max(block, (far_share, block)) FILTER (scope = 'layer') AS highest_at,
       min(far_share) FILTER (scope = 'kind') AS lowest_kind, arg_min(module, (far_share, module)) FILTER (scope = 'kind') AS lowest_kind_at,
       max(far_share) FILTER (scope = 'kind') AS highest_kind, arg_max(module, (far_share, module)) FILTER (scope = 'kind') AS highest_kind_at,
       max(1 - far_share) FILTER (scope = 'layer and kind') AS most,
       arg_min(matrix, (far_share, matrix)) FILTER (scope = 'layer and kind') AS most_at
FROM dense
GROUP BY model, weights, variant_id, threshold
ORDER BY model, weights, far
