-- Pruning alone, method by method (random masks are left out), at the sparsities that most methods have: whether the best variant passes the quality gate (✓), fails it
-- without a loss that a test shows (≈), shows a loss (✗), or is ruined (☠), and the least skill that it keeps, or its perplexity over dense.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' AND pattern = 'unstructured' AND method <> 'dense' /* manifests */
    AND variant_id NOT IN (FROM _more_than_zeros)
), lost AS (
    SELECT variant_id, bool_or(_lost(verdict)) AS lost FROM vs_dense WHERE verdict <> 'invalid' GROUP BY variant_id
), judged AS (
    SELECT g.*, v.method, round(v.sparsity, 4) AS sparsity, lost,
           CASE WHEN g.ruined THEN '☠' WHEN g.passes THEN '✓' WHEN lost THEN '✗' ELSE '≈' END AS mark
    FROM gate g
    JOIN asked USING (variant_id)
    JOIN (SELECT DISTINCT variant_id, method, sparsity FROM cells) v USING (variant_id)
    LEFT JOIN lost USING (variant_id)
    WHERE g.tasks > 0 AND NOT regexp_matches(v.method, '^random|^elsa|\+')
    -- Of several granularities and texts the best; a variant with fewer tasks has fewer chances to fail.
    QUALIFY row_number() OVER (PARTITION BY g.model, v.method, sparsity ORDER BY g.tasks DESC, g.passes DESC, g.ruined, g.retained DESC, g.ratio, variant_id) = 1
)
SELECT model, weights, method, sparsity, mark, retained, ratio, tasks, weakest,
       if(ratio > 10 OR mark = '☠', mark, concat(mark, ' ', coalesce(format('{:.0f}%', 100 * retained), ''), format(if(retained IS NULL, '×{:.2f}', ' ×{:.2f}'), ratio))) AS shown
FROM judged
WHERE sparsity IN (0.1, 0.5, 0.7, 0.9, 0.95, 0.99)
ORDER BY model, list_position(['magnitude', 'wanda', 'sparsegpt'], method) NULLS LAST, method, sparsity
