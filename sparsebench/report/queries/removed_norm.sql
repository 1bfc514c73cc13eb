-- How much each variant changes its matrices: |W - What| / |W| (Frobenius), the mean over the prunable matrices. What stays
-- keeps its value under random and magnitude pruning, so that the change follows from the two root mean squares.
WITH prunable AS (
    SELECT DISTINCT variant_id, model, weights, method, granularity, pattern, sparsity, seed, name, rms
    FROM tensors
    WHERE prunable /* manifests */
)
SELECT v.model, v.weights, concat_ws(' ', v.method, nullif(if(v.pattern = 'unstructured', v.granularity, v.pattern), '')) AS label,
       v.method, v.pattern, v.sparsity, v.seed, avg(1 - pow(v.rms / d.rms, 2)) AS squared, avg(sqrt(greatest(0, 1 - pow(v.rms / d.rms, 2)))) AS change
FROM prunable v
JOIN prunable d ON d.method = 'dense' AND d.model = v.model AND d.name = v.name
WHERE v.method IN ('random', 'magnitude') AND d.rms > 0
GROUP BY v.model, v.weights, v.method, v.granularity, v.pattern, v.sparsity, v.seed
ORDER BY v.model, v.method, v.pattern <> 'unstructured', label, v.sparsity, v.seed
