-- What was done to models, by kind of recipe: how many variants, and one of them.
WITH done AS (
    SELECT DISTINCT variant_id FROM cells WHERE status = 'done' /* manifests */
)
SELECT kind, count(*) AS variants, min(recipe) AS example
FROM _recipes
JOIN done USING (variant_id)
JOIN variants USING (variant_id)
WHERE kind <> 'floor'
GROUP BY kind
ORDER BY variants DESC, kind
