-- Zeros that pass the quality gate once they are trained, the smallest file first; beside them fewer bits that keep as much in a file as
-- small without any training.
WITH decision AS (FROM {decision})
SELECT z.model, z.weights, z.recipe, z.share, z.retained, z.ratio, b.recipe AS untrained, b.share AS untrained_share,
       b.retained AS untrained_retained, b.ratio AS untrained_ratio
FROM decision z
LEFT JOIN decision b ON b.kind = 'bits' AND b.model = z.model AND b.share < z.share + 0.03 AND b.retained >= coalesce(z.retained, 0)
WHERE z.kind = 'zeros + recovery'
QUALIFY row_number() OVER (PARTITION BY z.variant_id ORDER BY b.share, b.recipe) = 1
ORDER BY z.share, z.model, z.recipe
