-- How much each variant changes its matrices: |W - What| / |W| (Frobenius), the mean over the prunable matrices. Methods
-- that only choose leave the kept weights unchanged, so that the change follows from the two root mean squares.
WITH prunable AS (
    SELECT DISTINCT variant_id, model, weights, method, granularity, pattern, sparsity, seed, name, rms
    FROM tensors
    WHERE prunable /* manifests */
          -- Training and rounding change the weights that are kept.
          AND variant_id NOT IN (FROM _more_than_zeros)
), changed AS (
    SELECT v.*, pow(v.rms / d.rms, 2) AS left_over
    FROM prunable v
    JOIN prunable d ON d.method = 'dense' AND (d.model, d.weights, d.name) = (v.model, v.weights, v.name)
    WHERE regexp_matches(v.method, '^(random|magnitude|wanda|ria)(\+|$)') AND d.rms > 0
)
SELECT model, weights, method_label(method, granularity, pattern) || way AS label,
       method, pattern, sparsity, seed, avg(sqrt(greatest(0, 1 - left_over)) ORDER BY name) AS change
FROM changed
JOIN ways USING (variant_id)
GROUP BY variant_id, model, weights, method, granularity, pattern, way, sparsity, seed
ORDER BY model, method, pattern <> 'unstructured', label, sparsity, seed, variant_id
