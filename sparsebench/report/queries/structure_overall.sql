-- What share of the dense models' weights is near zero, by threshold in units of each matrix's rms.
WITH prunable AS (
    SELECT DISTINCT model, weights, variant_id, threshold, zero_share, near_share, far_share
    FROM structure
    WHERE method = 'dense' AND scale = 'relative' AND scope = 'prunable' /* manifests */
), everything AS (
    SELECT DISTINCT variant_id, threshold, far_share FROM structure WHERE scale = 'relative' AND scope = 'all'
)
SELECT DISTINCT model, weights, threshold, p.near_share AS near, p.far_share AS far, e.far_share AS far_all,
       p.zero_share AS zeros, normal_share(threshold) AS normal
FROM prunable p
JOIN everything e USING (variant_id, threshold)
ORDER BY model, weights, threshold, far
