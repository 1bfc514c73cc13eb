-- Every variant that was scored: its file, the least skill that it keeps, its perplexity over dense, its best shown speed-ups over the
-- fastest engine that ran the dense model, whether it passes the quality gate, and the steps that make it, as a manifest has them.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), written AS (
    SELECT variant_id, position,
           format('{{{}: {}', step, name)
               || coalesce(', ' || string_agg(format('{}: {}', field, value), ', '
                   ORDER BY field) FILTER (field IS NOT NULL
                       AND (field, value) NOT IN (('allocation', 'uniform'), ('keep_zeros', 'false'), ('pattern', 'unstructured'),
                           ('propagate', 'pruned'), ('columns', '128'), ('damping', '0.01'))), '') || '}' AS line
    FROM steps
    GROUP BY variant_id, position, step, name
), lines AS (
    SELECT variant_id, if(count(*) = 1, any_value(line), '[' || string_agg(line, ', ' ORDER BY position) || ']') AS line
    FROM written
    GROUP BY variant_id
), files AS (
    SELECT variant_id, min(share) AS share FROM sizes WHERE format = 'packed' GROUP BY variant_id
), times AS (
    SELECT variant_id, max(speedup) FILTER (phase IN ('decode', 'forward')) AS token,
           max(speedup) FILTER (phase IN ('generate', 'forward')) AS request
    FROM (FROM _headlines QUALIFY rivals = max(rivals) OVER (PARTITION BY variant_id))
    WHERE gains
    GROUP BY variant_id
)
SELECT g.model, g.weights, r.kind, r.words AS recipe, f.share, g.retained, g.ratio, token, request,
       CASE WHEN g.ruined THEN 'ruined' WHEN g.passes THEN 'passes' ELSE 'fails' END AS gate, line
FROM gate g
JOIN asked USING (variant_id)
JOIN _recipes r USING (variant_id)
JOIN lines USING (variant_id)
LEFT JOIN files f USING (variant_id)
LEFT JOIN times USING (variant_id)
WHERE g.tasks > 0 AND NOT r.chance
ORDER BY g.model, r.kind, gate, share, recipe, line, g.variant_id
