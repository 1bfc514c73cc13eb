-- Cells that a manifest asks for and that have no record yet: the recipes that lack them, per model and stage or benchmark.
WITH missing AS (
    SELECT manifest, model, coalesce(settings ->> 'task', stage) AS what, coalesce(words, 'dense') AS variant
    FROM cells
    LEFT JOIN _recipes USING (variant_id)
    WHERE status = 'missing' AND manifest IS NOT NULL /* manifests */
)
SELECT manifest, model, what, count(*) AS cells, string_agg(DISTINCT variant, ', ' ORDER BY variant) AS variants
FROM missing
GROUP BY ALL
ORDER BY manifest, model, what
