-- The pruning methods that were applied, with their granularities, patterns and allocations.
WITH applied AS (
    SELECT DISTINCT coalesce(allocation, 'uniform') AS spread, granularity, pattern, sparsity,
           if(spread = 'uniform', method, left(method, length(method) - length(spread) - 1)) AS method,
           concat_ws(', ', nullif(spread, 'uniform'), CASE WHEN propagate = 'dense' THEN 'dense inputs' END) AS way
    FROM cells
    WHERE method <> 'dense' AND status = 'done' AND variant_id NOT IN (FROM _more_than_zeros) /* manifests */
), swept AS (
    SELECT method, granularity, pattern, spread, way, list(DISTINCT sparsity ORDER BY sparsity) AS sparsities
    FROM applied
    GROUP BY ALL
)
SELECT method, bool_or(spread = 'owl') AS owl, list(
           CASE WHEN pattern LIKE '%:%' THEN pattern
           ELSE concat_ws(' ', nullif(granularity, ''), nullif(pattern, 'unstructured'), 'at',
               array_to_string([format('{:g}%', 100 * s) FOR s IN sparsities], ', '))
           END || if(way = '', '', ' (' || way || ')')
           ORDER BY pattern = 'unstructured' DESC, granularity, if(pattern LIKE '%:%', sparsities[1], 0), pattern, way, sparsities) AS variations
FROM swept
GROUP BY method
ORDER BY list_position(['random', 'magnitude', 'wanda', 'ria', 'sparsegpt', 'alps'], method) NULLS LAST, method
