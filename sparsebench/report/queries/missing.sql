-- Cells that a manifest asks for and that have no record yet: the methods that lack them, per model and stage or benchmark.
WITH missing AS (
    SELECT manifest, model, coalesce(settings ->> 'task', stage) AS what,
           concat_ws(' ', method_label(method, granularity, pattern), if(sparsity = 0, NULL, format('{:g}%', round(100 * sparsity, 2)))) AS variant
    FROM cells
    WHERE status = 'missing' AND manifest IS NOT NULL /* manifests */
)
SELECT manifest, model, what, count(*) AS cells, string_agg(DISTINCT variant, ', ' ORDER BY variant) AS variants
FROM missing
GROUP BY ALL
ORDER BY manifest, model, what
