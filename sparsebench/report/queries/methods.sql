-- The methods that were applied, with what competed and in which patterns.
WITH applied AS (
    SELECT DISTINCT method, granularity, pattern, sparsity
    FROM cells
    WHERE method <> 'dense' AND status = 'done' /* manifests */
), swept AS (
    SELECT method, granularity, pattern, list(DISTINCT sparsity ORDER BY sparsity) AS sparsities
    FROM applied
    GROUP BY ALL
)
SELECT method, list(CASE pattern WHEN 'unstructured'
                    THEN concat(granularity, ' at ', array_to_string([format('{:g}%', 100 * s) FOR s IN sparsities], ', '))
                    ELSE pattern END ORDER BY pattern = 'unstructured' DESC, granularity, sparsities) AS variations
FROM swept
GROUP BY method
ORDER BY method <> 'random', method <> 'magnitude', method
