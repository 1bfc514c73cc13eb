-- Every variant of which something was measured, and what a person may call it by.
WITH measured AS (
    SELECT variant_id AS id, any_value(model) AS model, any_value(family) AS family, any_value(weights) AS weights,
           any_value(dtype) AS dtype, any_value(method) AS method, any_value(granularity) AS granularity,
           any_value(pattern) AS pattern, any_value(sparsity) AS sparsity, any_value(seed) AS seed,
           any_value(propagate) AS propagate, any_value(calibration) AS calibration,
           list_sort(list(DISTINCT manifest)) AS manifests
    FROM _cells
    WHERE status = 'done'
    GROUP BY variant_id
)
FROM measured
ORDER BY model, method <> 'dense', method, granularity, pattern <> 'unstructured', pattern, sparsity, seed, dtype, propagate, id;
