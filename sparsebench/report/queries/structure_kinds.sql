-- Near-zero share, exact zeros, tails and the largest weight by kind of module, at the threshold nearest to 0.1 rms.
WITH near_zero AS (
    SELECT variant_id, any_value(model) AS model, any_value(weights) AS weights, any_value(family) AS family, side, kind, threshold,
           any_value(params) FILTER (scope = 'kind') AS params, any_value(near_share) FILTER (scope = 'kind') AS near,
           any_value(zero_share) FILTER (scope = 'kind') AS zeros, min(near_share) FILTER (scope = 'layer and kind') AS low,
           max(near_share) FILTER (scope = 'layer and kind') AS high
    FROM structure
    WHERE method = 'dense' AND scale = 'relative' AND kind IS NOT NULL /* manifests */
    GROUP BY variant_id, side, kind, threshold
    QUALIFY rank() OVER (PARTITION BY variant_id ORDER BY abs(ln(threshold / 0.1))) = 1
), tails AS (
    SELECT variant_id, side, kind, median(kurtosis) AS kurtosis, max(greatest(-min, max) / nullif(rms, 0)) AS extreme
    FROM tensors
    WHERE method = 'dense' AND count > 1
    GROUP BY variant_id, side, kind
)
SELECT model, weights, variant_id, CASE WHEN family = 'encoder-decoder' THEN nullif(side, '') END AS side, kind, threshold,
       params, near, low, high, zeros, kurtosis, extreme
FROM near_zero
JOIN tails USING (variant_id, side, kind)
WHERE kind NOT IN ('norm', 'bias')
QUALIFY variant_id = min(variant_id) OVER (PARTITION BY model, weights, side, kind, params, near)
ORDER BY model, variant_id, params DESC, side, kind
